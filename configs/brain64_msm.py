"""The demo: MSM trained on undersampled 64x64 brain scans (4 coils, nominal R 4), evaluated on a person never seen."""

from configs import default, variants


def get_config(variant: str = ""):
    """Variants: '' is the shipped checkpoint's, 'demo' about 5 minutes on two cores, 'smoke' a few steps for tests."""
    config = default.get_config()
    config.denoiser.sigma_data = 0.33
    config.model.num_channels = 40  # at patch_size 2: few pixels with many channels are what two cores do fastest
    config.model.channel_mult = (1, 2, 2)
    config.model.patch_size = 2
    config.model.attention_resolutions = (8,)
    config.training.batch_size = 8
    config.training.num_steps = 10_000
    config.training.log_every = 25
    config.training.checkpoint_every = 500
    return variants.apply(config, variant, {"demo": demo, "smoke": variants.smoke})


def demo(config):
    """Short enough to watch: the loss falls, pictures and checkpoints appear."""
    config.training.num_steps = 500
    config.training.log_every = 10
    config.training.checkpoint_every = config.training.sample_every = 250
    return config
