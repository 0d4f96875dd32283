"""The demo: MSM trained on undersampled 64x64 brain scans (4 coils, nominal R 4), evaluated on a person never seen.

    python tools/prepare_demo.py --size 64 --out store/brain64
    python main.py --config=configs/brain64_msm.py --workdir=workdir/brain64 --mode=train
    python main.py --config=configs/brain64_msm.py --workdir=workdir/brain64 --mode=eval

2.14 M parameters. The shipped checkpoint pretrained/brain64_msm was trained by these commands on two cores of a 2.5 GHz
Xeon, CPU only, in 46 minutes while the machine did other work. On the 23 slices of brain2: msm_fast 26.71 +- 0.71 dB in
20 network calls, msm 26.32 +- 0.68 as mean of 8 samples of 30 calls, where zero-filled has 19.18, CG-SENSE 24.42 and
l1-wavelet 29.41 (docs/results/demo.md). ':demo' took 6 minutes; its msm reached 22.92 +- 0.44 dB. A GPU needs no other
setting.
"""

from msm.configs import default, tasks, variants

VARIANTS = {"demo": variants.demo, "smoke": variants.smoke, **tasks.MRI}


def get_config(variant: str = ""):
    """Variants: '' is the shipped checkpoint's, 'demo' about 5 minutes on two cores, 'smoke' a few steps for tests.

    And the evaluation tasks of MRI in configs/tasks.py; join variants by '+'.
    """
    config = default.get_config()
    config.denoiser.sigma_data = 0.33
    config.model.num_channels = 40  # at patch_size 2: few pixels with many channels are what two cores do fastest
    config.model.channel_mult = (1, 2, 2)
    config.model.patch_size = 2
    config.model.attention_resolutions = (8,)
    config.training.batch_size = 8
    config.training.num_steps = 4500
    config.training.log_every = 25
    config.training.checkpoint_every = 500
    config.msm_fast.finish_sigma = 0.02  # four times the noise: chosen on validation, as docs/results/few-calls.md says
    config.eval.solvers = ("zero_filled", "cg_sense", "l1_wavelet", "msm_fast", "msm")
    return variants.apply(config, variant, VARIANTS)
