"""Ablation of photos64_msm: fresh missing blocks at every step, drawn from clean pictures.

    python main.py --config=configs/photos64_redraw.py --workdir=workdir/photos64_redraw --mode=train

The published code trains like this; it sees clean data, and its log says so.
"""

from msm.configs import photos64_msm


def get_config(variant: str = ""):
    """Variants as in photos64_msm."""
    config = photos64_msm.get_config(variant)
    config.data.acquisition = "full"
    config.loss.redraw = True
    return config
