"""A rival of brain64_msm: ambient diffusion and its posterior sampler A-DPS, the same network, data and budget.

    python main.py --config=configs/brain64_ambient.py --workdir=workdir/brain64_ambient --mode=train
    python main.py --config=configs/brain64_ambient.py --workdir=workdir/brain64_ambient --mode=tune
    python main.py --config=configs/brain64_ambient.py --workdir=workdir/brain64_ambient --mode=eval \
        --config.eval.tuned=workdir/brain64_ambient/tune/best.json

Trained on undersampled acquisitions alone (`get_ambient_loss`). benchmarks/rivals.py compares the methods.
"""

from msm.configs import brain64_msm


def get_config(variant: str = ""):
    """Variants as in brain64_msm."""
    config = brain64_msm.get_config(variant)
    config.loss.name = "ambient"
    config.dps.mask = "own"  # published: 'drawn', which never sees the data's other lines (docs/results/rivals.md)
    config.training.picture_solver = config.tune.solver = "a_dps"
    config.eval.solvers = ("zero_filled", "cg_sense", "l1_wavelet", "a_dps")
    return config
