"""photos64_msm trained on noisy pictures: noise of standard deviation 0.1 on every pixel that is not missing.

python tools/prepare_images.py --photos --size 64 --noise_std 0.1 --out store/photos64_noise01
python main.py --config=configs/photos64_msm_noise01.py --workdir=workdir/photos64_noise01 --mode=train
"""

from msm.configs import photos64_msm


def get_config(variant: str = ""):
    """Variants as in photos64_msm."""
    config = photos64_msm.get_config(variant)
    config.data.dir = "store/photos64_noise01"
    config.loss.name = "msm_sure"
    return config
