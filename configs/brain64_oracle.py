"""The upper bound of brain64_msm: the same network and budget trained on clean images (denoising score matching).

    python main.py --config=configs/brain64_oracle.py --workdir=workdir/brain64_oracle --mode=train

It sees clean data, and its log says so; evaluation is on undersampled acquisitions as for brain64_msm.
"""

from msm.configs import brain64_msm


def get_config(variant: str = ""):
    """Variants as in brain64_msm."""
    config = brain64_msm.get_config(variant)
    config.data.acquisition = "full"
    config.loss.name = "dsm"
    return config
