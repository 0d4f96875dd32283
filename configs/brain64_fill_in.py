"""brain64_msm learned from whole inputs: completions of the scans, judged on acquired lines alone.

    python main.py --config=configs/brain64_fill_in.py --workdir=workdir/brain64_fill_in --mode=train \
        --config.em.checkpoint=pretrained/brain64_msm --config.em.start=prior
    python main.py --config=configs/brain64_fill_in.py --workdir=workdir/brain64_fill_in --mode=eval

The network of brain64_msm from the same undersampled scans alone. Completions are made anew every 300 steps, by
`msm_fast` from four fifths of the acquired lines; without `em.checkpoint` the first are l1-wavelet reconstructions.
"""

from msm.configs import brain64_em, brain64_msm, variants


def get_config(variant: str = ""):
    """Variants as in brain64_em."""
    config = brain64_em.get_config()
    config.loss.name = "fill_in"
    config.training.num_steps = 900
    config.em.update(steps=300, restart=False, hide=0.2, solver="msm_fast", num_samples=1)
    return variants.apply(config, variant, {**brain64_msm.VARIANTS, "demo": brain64_em.demo})
