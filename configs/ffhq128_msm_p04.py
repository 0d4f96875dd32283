"""MSM on 128x128 faces with random boxes missing: 6 of 16 blocks (the paper's p = 0.4), no noise.

    python tools/prepare_images.py --folder FFHQ --size 128 --out store/ffhq128
    python main.py --config=configs/ffhq128_msm_p04.py --workdir=workdir/ffhq128_msm_p04 --mode=train
    python main.py --config=configs/ffhq128_msm_p04.py --workdir=workdir/ffhq128_msm_p04 --mode=sample
    python main.py --config=configs/ffhq128_msm_p04.py:sr4 --workdir=workdir/ffhq128_msm_p04 --mode=eval

105.2 M parameters, 153 GFLOP a network call; a step of this batch holds at most 48 GiB (tools/inspect_config.py): one
GPU of 80 GB, or a smaller one with optim.accumulate. Not trained here: the tests trace its loss at full size, and run
or trace a step at toy size.
tools/import_torch_checkpoint.py brings in the authors' ffhq_msm_p04_noise0_0_img128.pt.

Published (arXiv 2505.11853): FID of 3,000 samples 29.14, where the oracle has 10.21 and Ambient diffusion 55.90; on the
first 100 FFHQ pictures, held out with 900 more, at noise 0.01: box inpainting 24.71 dB (input 18.26), 4x
super-resolution 28.11 dB (input 23.21).
"""

from ml_collections import ConfigDict

from msm.configs import published, tasks, variants


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' as published, 'smoke' a few steps of a tiny network for tests, and the tasks of images."""
    config = published.base(128)
    config.data.update(dir="store/ffhq128", num_coils=0)
    config.transform.name = "identity"
    config.masks.update(name="random_boxes", grid=4, drop=6)
    config.msm_fast.mask_keep = 0.0  # the network never sees a whole picture
    config.denoiser.sigma_data = 0.5  # read by solvers only: 'eps' does without
    config.optim.learning_rate = 1e-5
    config.training.batch_size = 32
    config.eval.solvers = ("zero_filled", "msm")
    return variants.apply(tasks.published_images(config), variant, published.IMAGES)
