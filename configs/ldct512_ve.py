"""CT of Song et al. (ICLR 2022) at large size: low-dose CT slices (LDCT), 512x512.

    python main.py --config=configs/ldct512_ve.py --workdir=workdir/ldct512_ve --mode=train
    python main.py --config=configs/ldct512_ve.py --workdir=workdir/ldct512_ve --mode=eval

75.67 M parameters. Not trained here: the tests trace its loss and solvers at full size. Images and checkpoints (theirs
is the 63rd, of 1.26 M steps) as in lidc320_ve.
"""

from ml_collections import ConfigDict

from msm.configs import published_score, variants


def get_config(variant: str = "") -> ConfigDict:
    """Variants: the tasks of CT, 'smoke' a few steps of a tiny network for tests."""
    config = published_score.ct(512, sigma_max=220.0)
    config.data.dir = "store/ldct512"
    config.model.update(num_channels=16, channel_mult=(1, 2, 4, 8, 16, 32, 32), num_res_blocks=1)
    config.model.attention_resolutions = (16,)
    config.training.update(batch_size=16, checkpoint_every=20_000)
    config.optim.ema_rate = 0.9999
    config.score_sde.projection.update(snr=0.4, weight=0.72)
    return variants.apply(config, variant, published_score.CT)
