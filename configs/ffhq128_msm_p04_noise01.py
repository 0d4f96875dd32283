"""MSM on 128x128 faces with random boxes missing and noise of standard deviation 0.1 on the pixels, in units of [-1,1].

    python tools/prepare_images.py --folder FFHQ --size 128 --noise_std 0.1 --out store/ffhq128_noise01
    python main.py --config=configs/ffhq128_msm_p04_noise01.py --workdir=workdir/ffhq128_noise01 --mode=train
    python main.py --config=configs/ffhq128_msm_p04_noise01.py --workdir=workdir/ffhq128_noise01 --mode=sample

Network and hardware as ffhq128_msm_p04. A step makes three network calls: two of
them estimate Stein's unbiased risk. Not trained here: only ':smoke' has been run, by the tests. Published checkpoint:
ffhq_msm_p04_noise0_1_img128.pt; published FID 37.14, where GSURE diffusion has 89.71 (arXiv 2505.11853).
"""

from ml_collections import ConfigDict

from configs import ffhq128_msm_p04, published, variants


def get_config(variant: str = "") -> ConfigDict:
    """Variants as in ffhq128_msm_p04."""
    config = ffhq128_msm_p04.get_config()
    config.data.dir = "store/ffhq128_noise01"
    config.loss.name = "msm_sure"
    return variants.apply(config, variant, published.IMAGES)
