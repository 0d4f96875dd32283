"""The demo: MSM trained on undersampled 64x64 brain scans (4 coils, nominal R 4), evaluated on a person never seen.

    python tools/prepare_demo.py --size 64 --out store/brain64
    python main.py --config=configs/brain64_msm.py --workdir=workdir/brain64 --mode=train
    python main.py --config=configs/brain64_msm.py --workdir=workdir/brain64 --mode=eval

2.14 M parameters, 46 minutes on two cores. The shipped checkpoint pretrained/brain64_msm went on from these parameters
by rounds of EM (configs/brain64_em.py): on brain2 msm_fast has 31.15 +- 0.77 dB in 20 network calls, msm 29.91 +- 0.72
as mean of 8 samples of 30 calls, l1-wavelet 29.41 and CG-SENSE 24.42 (docs/results/demo.md). A GPU needs no other
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
