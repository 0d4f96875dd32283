"""A score model of clean chest slices and the solvers of Song et al. (ICLR 2022), beside lung64_ct.

    python tools/prepare_ct.py --lungs --out store/lung64
    python main.py --config=configs/lung64_ct_ve.py --workdir=workdir/lung64_ct_ve --mode=train
    python main.py --config=configs/lung64_ct_ve.py --workdir=workdir/lung64_ct_ve --mode=eval

NCSN++ and the variance-exploding SDE as published for CT, at the size of lung64_ct and with a tenth of the levels.
`projection` has its published settings for CT, the other solvers those for MRI.
After 4000 steps: docs/results/score-models.md.
"""

from msm.configs import lung64_ct, published_score, variants

SOLVERS = published_score.SOLVERS


def get_config(variant: str = ""):
    """Variants: 'demo', 'smoke', and the tasks of CT as published, without noise: 'sparse_ct', 'mar', 'sparse_mar'."""
    config = lung64_ct.get_config()
    config.model.name = "ncsnpp"
    config.denoiser.update(parametrization="score", sandwich="adjoint")
    config.schedule.update(name="ve", sigma_min=0.02, sigma_max=40.0)  # about the distance of two slices
    config.sampling.method = "predictor_corrector"
    config.training.picture_solver = "projection"
    config.score_sde.projection.update(snr=0.246, weight=0.841)
    for solver in SOLVERS:
        config.score_sde[solver].num_levels //= 10
    config.eval.solvers = ("fbp", "tikhonov", "l1_wavelet", "tv", *SOLVERS)
    return variants.apply(config, variant, {"demo": variants.demo, **published_score.CT})
