"""Ablation of brain64_msm: a fresh mask at every step, drawn from fully sampled, noiseless acquisitions.

    python main.py --config=configs/brain64_redraw.py --workdir=workdir/brain64_redraw --mode=train

The published code trains like this. Over many steps it shows the network every line of every image: it sees clean data,
and its log says so.
"""

from msm.configs import brain64_msm


def get_config(variant: str = ""):
    """Variants as in brain64_msm."""
    config = brain64_msm.get_config(variant)
    config.data.acquisition = "full"
    config.loss.redraw = True
    config.loss.redraw_noise_std = 0.005  # brain64's
    return config
