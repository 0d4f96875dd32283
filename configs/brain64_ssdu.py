"""A rival of brain64_msm: SSDU, the same network, data and budget; one network call per scan, no posterior samples.

    python main.py --config=configs/brain64_ssdu.py --workdir=workdir/brain64_ssdu --mode=train
    python main.py --config=configs/brain64_ssdu.py --workdir=workdir/brain64_ssdu --mode=eval

Trained on undersampled acquisitions alone (models/unrolled.py). `--config.ssdu.unrolls=10` is the published
depth, at ten times the cost per step; give it to eval as well. benchmarks/rivals.py compares the methods.
"""

from msm.configs import brain64_msm


def get_config(variant: str = ""):
    """Variants as in brain64_msm."""
    config = brain64_msm.get_config(variant)
    config.loss.name = config.training.picture_solver = config.tune.solver = "ssdu"
    config.eval.solvers = ("zero_filled", "cg_sense", "l1_wavelet", "ssdu")
    return config
