"""A score model of clean brain images and the solvers of Song et al. (ICLR 2022), beside brain64_msm.

    python tools/prepare_demo.py --size 64 --out store/brain64
    python main.py --config=configs/brain64_mri_ve.py --workdir=workdir/brain64_mri_ve --mode=train
    python main.py --config=configs/brain64_mri_ve.py --workdir=workdir/brain64_mri_ve --mode=eval

NCSN++ and the variance-exploding SDE as published for MRI, at the size of brain64_msm (1.99 M parameters) and for
several coils, with a tenth of the noise levels. It sees clean images, and its log says so; evaluation is on
undersampled acquisitions as for brain64_msm.
"""

from msm.configs import brain64_msm, variants

SOLVERS = ("projection", "langevin_projection", "baseline", "langevin")


def get_config(variant: str = ""):
    """Variants as in brain64_msm."""
    config = brain64_msm.get_config()
    config.data.acquisition = "full"
    config.loss.name = "dsm"
    config.model.name = "ncsnpp"
    config.denoiser.update(parametrization="score", sandwich="adjoint")
    config.schedule.update(name="ve", sigma_min=0.01, sigma_max=30.0)
    config.training.picture_solver = "projection"
    config.sampling.method = "predictor_corrector"
    for solver in SOLVERS:
        config.score_sde[solver].num_levels //= 10
    config.eval.solvers = ("zero_filled", "l1_wavelet", *SOLVERS)
    return variants.apply(config, variant, brain64_msm.VARIANTS)
