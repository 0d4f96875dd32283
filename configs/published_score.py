"""What the experiments of Song et al. (ICLR 2022) share, as the authors' code sets it (score_inverse_problems).

NCSN++ of 32 channels with the variance-exploding SDE on images in [0,1], Adam without weight decay; the four solvers
and their hyper-parameters are the defaults of `config.score_sde`. Differences:

  mean over pixels      they take half of the sum, whose gradients clipping to norm 1 makes much smaller
  averaged parameters   theirs keep the initial weights' share until 0.999^step has decayed, ours drop it early
  Langevin steps        of each example's own norms, theirs of the means over the batch
"""

from ml_collections import ConfigDict

from configs import default, variants

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


VARIANTS = {"smoke": variants.smoke}
