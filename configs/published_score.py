"""What the experiments of Song et al. (ICLR 2022) share, as the authors' code sets it (score_inverse_problems).

NCSN++ with the variance-exploding SDE on images in [0,1], for CT here in [-1,1], Adam without weight decay; the four
solvers and their hyper-parameters are the defaults of `config.score_sde`. Differences:

  mean over pixels      they take half of the sum, whose gradients clipping to norm 1 makes much smaller
  averaged parameters   theirs keep the initial weights' share until 0.999^step has decayed, ours drop it early
  Langevin steps        of each example's own norms, theirs of the means over the batch
"""

from ml_collections import ConfigDict

from msm.configs import default, tasks, variants

SOLVERS = ("projection", "langevin_projection", "baseline", "langevin")


def base(image_size: int, sigma_max: float) -> ConfigDict:
    """The settings of all for images of `image_size` pixels; a leaf adds data, masks, levels of the network and task.

    `sigma_max` is about the largest distance between two images of the data (Song and Ermon 2020).
    """
    config = default.get_config()
    config.data.update(image_size=image_size, acquisition="full", augment=())
    config.model.update(name="ncsnpp", num_channels=32, num_res_blocks=2)
    config.model.ncsnpp.centered = False
    config.denoiser.update(parametrization="score", sandwich="adjoint", sigma_data=0.25)
    config.schedule.update(name="ve", sigma_min=0.01, sigma_max=sigma_max)
    config.loss.update(name="dsm", min_keep=1.0)
    config.optim.update(learning_rate=2e-4, warmup_steps=5000, decay="constant", weight_decay=0.0, grad_clip=1.0)
    config.optim.ema_rate = 0.999
    config.training.update(batch_size=64, num_steps=2_400_000, log_every=50, resume_every=5000)
    config.training.update(checkpoint_every=50_000, sample_every=50_000, picture_solver="projection")
    config.sampling.update(method="predictor_corrector", num_levels=1000)
    config.eval.update(num_samples=1, solvers=SOLVERS)
    return config


def ct(image_size: int, sigma_max: float) -> ConfigDict:
    """The same for CT slices in [-1,1], where theirs are in [0,1]: all noise levels are doubled.

    `sigma_max` is theirs. The task is sparse-view CT, merged as published by the Fourier-slice theorem.
    """
    config = base(image_size, 2 * sigma_max)
    config.schedule.sigma_min *= 2
    config.model.ncsnpp.centered = True
    config.denoiser.sigma_data = 0.6
    config.transform.name = "grey"
    config.data.num_coils = 0
    config.masks.update(name="random_boxes", grid=4, drop=0)
    config.score_sde.consistency = "fourier_slice"
    config.training.picture_solver = "langevin"  # of the store's whole images, which have no views
    return sparse_ct(config)


def sparse_ct(config: ConfigDict) -> ConfigDict:
    """23 views."""
    return _ct_task(tasks.sparse_ct(config))


def mar(config: ConfigDict) -> ConfigDict:
    """Metal artefacts, as many views as rows: no corrector."""
    config.score_sde.projection.update(corrector="none", weight=0.355)
    return _ct_task(tasks.mar(config))


def sparse_mar(config: ConfigDict) -> ConfigDict:
    """Metal artefacts, 23 views."""
    config.score_sde.projection.update(snr=0.261, weight=0.865)
    return _ct_task(tasks.sparse_mar(config))


def sparse_mar180(config: ConfigDict) -> ConfigDict:
    """Metal artefacts, 180 views: no corrector."""
    config = sparse_mar(config)
    config.score_sde.projection.update(corrector="none", weight=0.27)
    config.task.views, config.eval.folder = 180, "sparse_mar180"
    return config


def _ct_task(config: ConfigDict) -> ConfigDict:
    """Without noise, as theirs, and with the solvers of score models beside filtered backprojection."""
    config.task.noise_std = 0.0
    config.eval.solvers = ("fbp", *SOLVERS)
    return config


CT = {
    "smoke": variants.smoke,
    "sparse_ct": sparse_ct,
    "mar": mar,
    "sparse_mar": sparse_mar,
    "sparse_mar180": sparse_mar180,
}
VARIANTS = {"smoke": variants.smoke}
