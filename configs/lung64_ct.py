"""The CT demo: a prior of chest slices, learned from clean images of one patient, and another patient's sparse views.

    python tools/prepare_ct.py --lungs --out store/lung64
    python main.py --config=configs/lung64_ct.py --workdir=workdir/lung64 --mode=train
    python main.py --config=configs/lung64_ct.py:sparse_ct --workdir=workdir/lung64 --mode=eval

64 x 64 pixels of 4.6 mm (training) and 5.0 mm (test), 48 training slices. Two CPU cores are enough; a GPU needs no
other setting. As published for CT, the prior sees whole images and no measurement; evaluation simulates projections.
"""

from msm.configs import default, tasks, variants


def get_config(variant: str = ""):
    """Variants: '' for hours on two cores or minutes on a GPU, 'demo', 'smoke'; tasks: 'sparse_ct'."""
    config = default.get_config()
    config.data.dir = "store/lung64"
    config.data.num_coils = 0
    config.data.acquisition = "full"
    config.data.augment = ("mirror",)
    config.transform.name = "grey"
    config.masks.name = "random_boxes"
    config.masks.grid = 4
    config.masks.drop = 0
    config.denoiser.sigma_data = 0.63
    config.loss.name = "dsm"
    config.loss.min_keep = 1.0
    config.model.num_channels = 40  # at patch_size 2: few pixels with many channels are what two cores do fastest
    config.model.channel_mult = (1, 2, 2)
    config.model.patch_size = 2
    config.model.attention_resolutions = (8,)
    config.training.batch_size = 8
    config.training.num_steps = 10_000
    config.training.log_every = 25
    config.training.checkpoint_every = 500
    return variants.apply(
        tasks.sparse_ct(config), variant, {"demo": variants.demo, "smoke": variants.smoke, **tasks.CT}
    )
