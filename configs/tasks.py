"""Variants that choose what evaluation reconstructs, and the published settings of the MSM solver.

  python main.py --config=configs/brain64_msm.py:csmri6 --workdir=workdir/brain64 --mode=eval

Each sets `config.task` and `eval.folder`, so that the results of several tasks lie side by side in one workdir. They
compose with a leaf's other variants: ':smoke+csmri6', ':csmri4+published'.
"""

from ml_collections import ConfigDict

from msm.operators.shape import image_size

# Park et al. 2025 (arXiv 2505.11853) and the authors' code. Algorithm 1: masks drawn from p(S), estimates put back.
PUBLISHED = {"num_levels": 200, "mask_keep": 0.0, "reinject": True, "step": "renoise", "eta": 0.85}
PUBLISHED_IMAGES = {**PUBLISHED, "w": 2, "consistency": "pseudo_inverse", "gamma": 1.75}
PUBLISHED_MRI = {**PUBLISHED, "w": 3, "consistency": "entries", "gamma": 2.0}

IMAGE_SOLVERS = ("pseudo_inverse", "tikhonov", "l1_wavelet", "tv", "msm")
CT_SOLVERS = ("fbp", "tikhonov", "l1_wavelet", "tv", "msm")
MAR_SOLVERS = ("fbp", "li", "tikhonov", "l1_wavelet", "tv", "msm")


# Weights of the classical solvers, each the best of a grid on the validation images of photos64, or the validation
# slices of brain64, at noise 0.01 (docs/results/clean-or-not.md). Those of CT are best on
# the validation slices of lung64 for sparse_ct, noise 0.002; metal takes them over.
BASELINES = {
    "sr4": {"ridge": 0.001, "wavelet": 0.001, "tv": 0.001},
    "box": {"ridge": 0.001, "wavelet": 0.1, "tv": 0.05},
    "random_inpainting": {"ridge": 0.001, "wavelet": 0.01, "tv": 0.01},
    "gaussian_blur": {"ridge": 0.01, "wavelet": 0.002, "tv": 0.002},
    "motion_blur": {"ridge": 0.01, "wavelet": 0.001, "tv": 0.001},
    "colorization": {"ridge": 0.001, "wavelet": 0.002, "tv": 0.001},
    "sparse_ct": {"ridge": 0.0001, "wavelet": 0.0003, "tv": 0.001},
    "mar": {"ridge": 0.0001, "wavelet": 0.0003, "tv": 0.001},
    "sparse_mar": {"ridge": 0.0001, "wavelet": 0.0003, "tv": 0.001},
    "csmri": {"ridge": 0.003, "wavelet": 0.0015, "tv": 0.004},
}


def _image_task(config: ConfigDict, folder: str, **settings) -> ConfigDict:
    config.task.update(settings)
    config.baselines.update(BASELINES[folder])
    config.eval.folder = folder
    config.eval.solvers = IMAGE_SOLVERS
    return config


def sr4(config: ConfigDict) -> ConfigDict:
    """Super-resolution by 4 in both axes."""
    return _image_task(config, "sr4", name="sr", factor=4)


def box(config: ConfigDict) -> ConfigDict:
    """Inpainting of a box of half the image's width in its middle: 64 x 64 at 128 pixels."""
    return _image_task(config, "box", name="box_inpainting", box_size=min(image_size(config)) // 2)


def random_inpainting(config: ConfigDict) -> ConfigDict:
    """Inpainting where 30 % of the pixels are known."""
    return _image_task(config, "random_inpainting", name="random_inpainting", keep=0.3)


def gaussian_blur(config: ConfigDict) -> ConfigDict:
    """Deblurring, Gaussian of 1.5 pixels at a width of 64, in proportion to it elsewhere."""
    return _image_task(config, "gaussian_blur", name="gaussian_blur", sigma=1.5 * min(image_size(config)) / 64)


def motion_blur(config: ConfigDict) -> ConfigDict:
    """Deblurring, diagonal motion by 9 pixels at a width of 64, in proportion to it elsewhere."""
    length = 9.0 * min(image_size(config)) / 64
    return _image_task(config, "motion_blur", name="motion_blur", length=length, angle=45.0)


def colorization(config: ConfigDict) -> ConfigDict:
    """Colours from the mean of the channels."""
    return _image_task(config, "colorization", name="colorization")


def _mri_task(config: ConfigDict, acceleration: float) -> ConfigDict:
    config.task.update(name="cs_mri", acceleration=acceleration, acs_lines=config.masks.acs_lines)
    config.baselines.update(BASELINES["csmri"])
    config.eval.folder = f"csmri{acceleration:g}"
    return config


def csmri4(config: ConfigDict) -> ConfigDict:
    """MRI at nominal R = 4, with the ACS lines of the training masks."""
    return _mri_task(config, 4.0)


def csmri6(config: ConfigDict) -> ConfigDict:
    """MRI at nominal R = 6, with the ACS lines of the training masks."""
    return _mri_task(config, 6.0)


def sparse_ct(config: ConfigDict) -> ConfigDict:
    """CT from 23 parallel-beam views, as published (Song et al., arXiv 2111.08005), but with noise.

    0.002 in units of y is that of about 12,000 photons that arrive in each bin, for the chests at 64 x 64.
    """
    config = _image_task(config, "sparse_ct", name="sparse_ct", views=23, noise_std=0.002)
    config.eval.solvers = CT_SOLVERS
    return config


def mar(config: ConfigDict) -> ConfigDict:
    """CT without the rays that meet metal, as many views as rows."""
    config = _image_task(config, "mar", name="mar")
    config.eval.solvers = MAR_SOLVERS
    return config


def sparse_mar(config: ConfigDict) -> ConfigDict:
    """CT from 23 views without the rays that meet metal."""
    config = _image_task(config, "sparse_mar", name="sparse_mar", views=23)
    config.eval.solvers = MAR_SOLVERS
    return config


def published_images(config: ConfigDict) -> ConfigDict:
    """The solver as published for image inverse problems; 400 network calls per sample."""
    config.solver.update(PUBLISHED_IMAGES)
    return config


def published_mri(config: ConfigDict) -> ConfigDict:
    """The solver as published for MRI; 600 network calls per sample."""
    config.solver.update(PUBLISHED_MRI)
    return config


IMAGES = {
    "sr4": sr4,
    "box": box,
    "random_inpainting": random_inpainting,
    "gaussian_blur": gaussian_blur,
    "motion_blur": motion_blur,
    "colorization": colorization,
    "published": published_images,
}  # what a leaf config of images offers
CT = {"sparse_ct": sparse_ct, "mar": mar, "sparse_mar": sparse_mar}  # and one of CT
MRI = {"csmri4": csmri4, "csmri6": csmri6, "published": published_mri}  # and one of MRI
