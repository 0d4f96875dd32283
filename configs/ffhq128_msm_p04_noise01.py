"""MSM on 128x128 faces with random boxes missing and noise of standard deviation 0.1 on the pixels, in units of [-1,1].

    python tools/prepare_images.py --folder FFHQ --size 128 --noise_std 0.1 --out store/ffhq128_noise01
    python main.py --config=configs/ffhq128_msm_p04_noise01.py --workdir=workdir/ffhq128_noise01 --mode=train
    python main.py --config=configs/ffhq128_msm_p04_noise01.py --workdir=workdir/ffhq128_noise01 --mode=sample

Network as ffhq128_msm_p04. A step sends three times as many images through the network, forward and back: two of the
three estimate Stein's unbiased risk. It holds at most 138 GiB, with optim.accumulate 4 at most 37
(tools/inspect_config.py): one GPU of 80 GB, or of 48.

Not trained here: the tests trace its loss at full size, and run or trace a step at toy size. Published checkpoint:
ffhq_msm_p04_noise0_1_img128.pt; published FID 37.14, where GSURE diffusion has 89.71 (arXiv 2505.11853).
"""

from ml_collections import ConfigDict

from msm.configs import ffhq128_msm_p04, published, variants


def get_config(variant: str = "") -> ConfigDict:
    """Variants as in ffhq128_msm_p04."""
    config = ffhq128_msm_p04.get_config()
    config.data.dir = "store/ffhq128_noise01"
    config.loss.name = "msm_sure"
    return variants.apply(config, variant, published.IMAGES)
