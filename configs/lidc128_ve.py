"""CT of Song et al. (ICLR 2022) at small size: LIDC slices, 128x128.

    python main.py --config=configs/lidc128_ve.py --workdir=workdir/lidc128_ve --mode=train
    python main.py --config=configs/lidc128_ve.py --workdir=workdir/lidc128_ve --mode=eval

13.54 M parameters. Not trained here: the tests trace its loss and solvers at full size. Published as a config alone,
with the default hyper-parameters of the solvers.
"""

from ml_collections import ConfigDict

from msm.configs import published_score, variants


def get_config(variant: str = "") -> ConfigDict:
    """Variants: the tasks of CT, 'smoke' a few steps of a tiny network for tests."""
    config = published_score.ct(128, sigma_max=55.0)
    config.data.dir = "store/lidc128"
    config.model.update(num_channels=64, channel_mult=(1, 1, 2, 2, 2, 2), attention_resolutions=(16,))
    config.score_sde.projection.update(snr=0.206, weight=1.0)
    return variants.apply(config, variant, published_score.CT)
