"""The upper bound of photos64_msm: the same network and budget trained on clean pictures (denoising score matching).

    python main.py --config=configs/photos64_oracle.py --workdir=workdir/photos64_oracle --mode=train

It sees clean data, and its log says so; evaluation is on masked pictures as for photos64_msm.
"""

from msm.configs import photos64_msm, variants


def get_config(variant: str = ""):
    """Variants as in photos64_msm."""
    config = photos64_msm.get_config()
    config.data.acquisition = "full"
    config.loss.name = "dsm"
    for section in (config.solver, config.sampling):  # the network has seen nothing but whole pictures
        section.update(mask_keep=1.0, w=1)
    config.solver.num_levels = 60
    config.msm_fast.update(mask_keep=1.0, start_sigma=0.3, num_levels=20)
    return variants.apply(config, variant, photos64_msm.VARIANTS)
