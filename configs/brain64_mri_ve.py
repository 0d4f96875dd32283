"""A score model of clean brain images and the solvers of Song et al. (ICLR 2022), beside brain64_msm.

python main.py --config=configs/brain64_mri_ve.py --workdir=workdir/brain64_mri_ve --mode=train
python main.py --config=configs/brain64_mri_ve.py --workdir=workdir/brain64_mri_ve --mode=eval
"""

from configs import brain64_msm


def get_config(variant: str = ""):
    """Variants as in brain64_msm."""
    config = brain64_msm.get_config(variant)
    config.data.acquisition = "full"
    config.loss.name = "dsm"
    config.schedule.update(name="ve", sigma_min=0.01, sigma_max=30.0)
    config.training.picture_solver = "projection"
    config.eval.solvers = ("zero_filled", "projection", "langevin_projection", "baseline", "langevin")
    return config
