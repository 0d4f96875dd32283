"""MRI of Song et al. (ICLR 2022): a score model of BraTS slices, 240x240 magnitudes, and reconstruction from 30 lines.

    python main.py --config=configs/brats240_ve.py --workdir=workdir/brats240 --mode=train
    python main.py --config=configs/brats240_ve.py --workdir=workdir/brats240 --mode=eval

2.68 M parameters. The published checkpoint goes in by tools/import_flax_checkpoint.py (their 26th, of 1.3 M steps).
BraTS 2021 has to be applied for; bring its slices, magnitudes in [0,1], into the layout of docs/reference/store.md
as fully sampled acquisitions of one coil whose map is 1, with noise_std 0. Masks: 7 lines in the middle and every tenth
elsewhere, 29 to 31 of 240; theirs are the same 30 for all images, ours have a random offset.

Of real images a merge of half of k-space is no projection; 'adjoint' is what the authors' code does. Not trained here:
the tests trace its loss at full size.
"""

from ml_collections import ConfigDict

from msm.configs import published_score, variants


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' as published, 'smoke' a few steps of a tiny network for tests."""
    config = published_score.base(240, sigma_max=128.0)
    config.data.update(dir="store/brats240", num_coils=1)
    config.transform.name = "real_fourier"
    config.masks.update(name="cartesian_equispaced", acceleration=10.1, acs_lines=7)
    config.model.update(channel_mult=(1, 1, 2, 2, 2), attention_resolutions=(30,))
    config.task.update(name="cs_mri", acceleration=10.1, acs_lines=7, noise_std=0.0)
    config.score_sde.consistency = "adjoint"
    config.eval.folder = "lines30"
    return variants.apply(config, variant, published_score.VARIANTS)
