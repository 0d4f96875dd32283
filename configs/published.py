"""What the six experiments of the MSM paper share, as the authors' code sets it (github.com/wustl-cig/MSM).

Network, schedule, loss reduction, optimiser, levels, eta and w are the authors'. Their files tell neither batch size
nor number of steps of the published checkpoints (a demo's batch of 2, no end): those two are ours. Differences:

  one acquisition per subject  they draw mask and noise anew from the clean image at every step (docs/method.md)
  one level per example        they give a whole batch the same timestep
  masks of the sampler         drawn from p(S); they steer towards what is not covered yet (sampling.mask_order)
  averaged parameters          theirs keep the initial weights' share until 0.9999^step has decayed, ours drop it early
  clipping                     they clip estimates to [-1,1] for noisy faces and box inpainting; this sampler never does
"""

from ml_collections import ConfigDict

from msm.configs import default, tasks, variants

ATTENTION = (32, 16, 8)  # feature-map sizes
IMAGES, MRI = (  # variants: the solver is the published one already
    {"smoke": variants.smoke, **{name: change for name, change in found.items() if name != "published"}}
    for found in (tasks.IMAGES, tasks.MRI)
)
LEVELS = {128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}  # channel_mult by image size: 105.2 and 138.3 M parameters


def base(image_size: int) -> ConfigDict:
    """The settings of all six for images of 128 or 256 pixels; a leaf adds data, masks, learning rate and solver."""
    config = default.get_config()
    config.data.image_size = image_size
    config.data.augment = ()
    config.model.update(num_channels=128, channel_mult=LEVELS[image_size], num_res_blocks=2)
    config.model.update(attention_resolutions=ATTENTION, num_heads=4, num_head_channels=64)
    config.denoiser.update(parametrization="eps", sandwich="adjoint")
    config.schedule.update(name="ddpm", train_stride=5)
    config.loss.update(name="msm", reduction="all", min_keep=1.0)
    config.optim.update(weight_decay=0.0, warmup_steps=0, decay="constant", grad_clip=0.0, ema_rate=0.9999)
    config.training.update(num_steps=500_000, log_every=100, resume_every=1000)
    config.training.update(checkpoint_every=50_000, sample_every=50_000)
    config.sampling.update(num_levels=200, w=3, mask_keep=0.0, reinject=True, eta=1.0, num_images=3000)
    config.eval.update(num_samples=1, metrics=("standard", "paper"))
    return config


def oracle(config: ConfigDict) -> ConfigDict:
    """Ordinary diffusion on clean data: all 1000 levels in training, whole measurements in the calls of the samplers.

    It reconstructs images by replacing what was measured, H^+ H zhat by H^+ y (DDNM, Wang et al. 2023, arXiv
    2212.00490). With coils H^+ amplifies noise of 0.01 to the size of the image, so there the step is damped by the
    noise, `least_squares`, as DDNM+ of the same paper does.
    """
    config.data.acquisition = "full"
    config.loss.name = "dsm"
    config.schedule.train_stride = 1
    for section in (config.sampling, config.solver):
        section.update(w=1, mask_keep=1.0, reinject=False)
    config.msm_fast.mask_keep = 1.0
    config.solver.update(consistency="least_squares" if config.data.num_coils else "pseudo_inverse", gamma=1.0)
    return config
