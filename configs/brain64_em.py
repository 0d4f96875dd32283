"""brain64_msm learned by expectation and maximisation: rounds of completing the scans and of learning from that.

    python tools/prepare_demo.py --size 64 --out store/brain64
    python main.py --config=configs/brain64_em.py --workdir=workdir/brain64_em --mode=train
    python main.py --config=configs/brain64_em.py --workdir=workdir/brain64_em --mode=eval

The network of brain64_msm from the same undersampled scans alone. A round is 1000 steps on posterior samples of the
training scans (modes/em.py), the first on l1-wavelet reconstructions; `--config.em.checkpoint=pretrained/brain64_msm`
starts from trained parameters. em/rounds.json tells the held-out error of every round, and checkpoints hold the best.
"""

from ml_collections import ConfigDict

from msm.configs import brain64_msm, variants


def demo(config: ConfigDict) -> ConfigDict:
    """Two short rounds."""
    config = variants.demo(config)
    config.em.steps = 250
    return config


VARIANTS = {**brain64_msm.VARIANTS, "demo": demo}


def get_config(variant: str = ""):
    """Variants: '' is four rounds, 'demo' two short ones, 'smoke' a few steps for tests; and those of brain64_msm."""
    config = brain64_msm.get_config()
    config.loss.name = "em"
    config.schedule.update(log_sigma_mean=-2.2, log_sigma_std=1.4)  # where solvers work
    config.optim.update(learning_rate=4e-4, warmup_steps=50, ema_rate=0.998)
    config.training.num_steps = 4000
    return variants.apply(config, variant, VARIANTS)
