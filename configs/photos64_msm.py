"""The image demo: MSM trained on 64x64 photo patches with 6 of 16 blocks missing, evaluated on photos never seen.

    python tools/prepare_images.py --photos --size 64 --out store/photos64
    python main.py --config=configs/photos64_msm.py --workdir=workdir/photos64 --mode=train
    python main.py --config=configs/photos64_msm.py --workdir=workdir/photos64 --mode=eval

2.14 M parameters, as brain64_msm. Two CPU cores are enough; a GPU needs no other setting.
"""

from msm.configs import default, tasks, variants

VARIANTS = {"demo": variants.demo, "smoke": variants.smoke, **tasks.IMAGES}


def get_config(variant: str = ""):
    """Variants: '' for hours on two cores or minutes on a GPU, 'demo' a few hundred steps, 'smoke' a few for tests."""
    config = default.get_config()
    config.data.dir = "store/photos64"
    config.data.num_coils = 0
    config.data.augment = ("mirror",)
    config.transform.name = "identity"
    config.masks.name = "random_boxes"
    config.masks.grid = 4
    config.masks.drop = 6
    config.denoiser.sigma_data = 0.52
    config.loss.min_keep = 1.0  # thinning would punch out single pixels, which no mask of p(S) does
    config.model.num_channels = 40  # at patch_size 2: few pixels with many channels are what two cores do fastest
    config.model.channel_mult = (1, 2, 2)
    config.model.patch_size = 2
    config.model.attention_resolutions = (8,)
    config.training.batch_size = 8
    config.training.num_steps = 10_000
    config.training.log_every = 25
    config.training.checkpoint_every = 500
    # the network never saw a whole picture: 6 of 16 blocks were always missing
    config.solver.update(mask_keep=0.0, w=3, num_levels=20)
    config.sampling.update(mask_keep=0.0, w=3)
    config.msm_fast.update(mask_keep=0.0, start_sigma=0.5, num_levels=60)  # of random pixels; drifts in missing blocks
    config.baselines.update(wavelet=0.02, tv=0.05)  # best of a grid on the validation patches
    config.eval.num_samples = 4
    config.eval.solvers = ("zero_filled", "tv", "l1_wavelet", "msm")
    return variants.apply(config, variant, VARIANTS)
