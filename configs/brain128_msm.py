"""MSM on undersampled 128x128 brain scans (8 coils, nominal R = 4): for one GPU.

    python tools/prepare_demo.py --size 128 --out store/brain128
    python main.py --config=configs/brain128_msm.py --workdir=workdir/brain128 --mode=train
    python main.py --config=configs/brain128_msm.py --workdir=workdir/brain128 --mode=eval

The full network has not been trained for this file: only its ':smoke' variant has been run, by the tests.
"""

from msm.configs import default, tasks, variants


def get_config(variant: str = ""):
    """Variants: '' for a GPU, 'smoke' a few steps of a tiny network for tests; the MRI tasks of configs/tasks.py."""
    config = default.get_config()
    config.data.dir = "store/brain128"
    config.data.image_size = 128
    config.data.num_coils = 8
    config.masks.acs_lines = 12
    config.denoiser.sigma_data = 0.31
    config.model.num_channels = 64
    config.model.channel_mult = (1, 2, 2, 4)
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (16,)
    config.optim.learning_rate = 3e-4
    config.optim.warmup_steps = 1000
    config.optim.ema_rate = 0.9995
    config.training.batch_size = 16
    config.training.num_steps = 100_000
    config.training.log_every = 100
    config.training.checkpoint_every = 10_000
    config.training.resume_every = 1000
    config.training.sample_every = 10_000
    return variants.apply(config, variant, {"smoke": variants.smoke, **tasks.MRI})
