"""brain64_msm trained on noisy scans: noise 0.1 per real and imaginary entry, where images are about 1 at most.

python tools/prepare_demo.py --size 64 --noise_std 0.1 --out store/brain64_noise01
python main.py --config=configs/brain64_msm_noise01.py --workdir=workdir/brain64_noise01 --mode=train
"""

from msm.configs import brain64_msm


def get_config(variant: str = ""):
    """Variants as in brain64_msm."""
    config = brain64_msm.get_config(variant)
    config.data.dir = "store/brain64_noise01"
    config.loss.name = "msm_sure"
    return config
