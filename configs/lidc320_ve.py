"""CT of Song et al. (ICLR 2022): LIDC slices, 320x320, for sparse views and metal artefacts.

    python main.py --config=configs/lidc320_ve.py --workdir=workdir/lidc320_ve --mode=train
    python main.py --config=configs/lidc320_ve.py --workdir=workdir/lidc320_ve --mode=eval

4.12 M parameters. Not trained here: the tests trace its loss and solvers at full size. Images are in [-1,1], theirs in
[0,1]: with their checkpoint (the 101st, of 5 M steps) halve the noise levels, set `model.ncsnpp.centered` False and
scale the store's images to [0,1]. Four of their configs are the variants of this one.
"""

from ml_collections import ConfigDict

from msm.configs import published_score, variants


def get_config(variant: str = "") -> ConfigDict:
    """Variants: the tasks of CT, 'sparse_mar180', 'smoke' a few steps of a tiny network for tests."""
    config = published_score.ct(320, sigma_max=128.0)
    config.data.dir = "store/lidc320"
    config.model.update(channel_mult=(1, 1, 2, 2, 2, 2, 2), attention_resolutions=(20,))
    config.score_sde.projection.update(snr=0.246, weight=0.841)
    return variants.apply(config, variant, published_score.CT)
