"""The upper bound of ffhq128_msm_p04: the same network as an ordinary diffusion model of clean 128x128 faces.

    python main.py --config=configs/ffhq128_oracle.py --workdir=workdir/ffhq128_oracle --mode=train
    python main.py --config=configs/ffhq128_oracle.py --workdir=workdir/ffhq128_oracle --mode=sample

Trains on the acquisitions `full` of the same store, and its log says so. Hardware as ffhq128_msm_p04. Not trained here:
the tests trace its loss at full size, and run or trace a step at toy size. Published checkpoint:
ffhq_uncond_p00_noise0_0_img128.pt; published FID of 3,000 samples with 200 levels: 10.21 (arXiv 2505.11853).
"""

from ml_collections import ConfigDict

from msm.configs import ffhq128_msm_p04, published, variants


def get_config(variant: str = "") -> ConfigDict:
    """Variants as in ffhq128_msm_p04."""
    config = published.oracle(ffhq128_msm_p04.get_config())
    return variants.apply(config, variant, published.IMAGES)
