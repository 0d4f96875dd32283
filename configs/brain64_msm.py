"""The demo: MSM trained on undersampled 64x64 brain scans (4 coils, nominal R = 4), evaluated on a person never seen."""

from configs import default, variants


def get_config(variant: str = ""):
    """Variants: '' the shipped checkpoint's training, 'demo' about 5 minutes on two cores, 'smoke' a few steps for tests."""
    config = default.get_config()
    config.denoiser.sigma_data = 0.33
    config.model.num_channels = 40
    config.model.channel_mult = (1, 2, 2)
    config.model.patch_size = 2
    config.model.attention_resolutions = (8,)
    config.training.batch_size = 8
    config.training.num_steps = 4500
    return variants.apply(config, variant, {"demo": demo, "smoke": variants.smoke})


def demo(config):
    config.training.num_steps = 500
    return config
