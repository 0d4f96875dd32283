"""MSM on 256x256 multi-coil brain scans of fastMRI: random columns at nominal R = 4 with 20 ACS lines, no noise added.

    python main.py --config=configs/fastmri256_msm_r4.py --workdir=workdir/fastmri256_msm_r4 --mode=train
    python main.py --config=configs/fastmri256_msm_r4.py:csmri4 --workdir=workdir/fastmri256_msm_r4 --mode=eval

138.3 M parameters, 558 GFLOP a network call; a step of this batch holds at most 82 GiB (tools/inspect_config.py): two
GPUs of 80 GB, or one with optim.accumulate 2. Not trained here: the tests trace its loss at full size, and run or
trace a step at toy size.

fastMRI has to be applied for at fastmri.med.nyu.edu; tools/prepare_mri.py makes the store (commands:
docs/how-to/fastmri.md). The authors take 1355 volumes for training and 22 for testing, cropped to 256x256, without
a volume's last 5 slices, coil maps by ESPIRiT, and scale every slice to magnitudes in [0,1]: with their checkpoint,
fmri_msm_R4_noise0_0_img256.pt (tools/import_torch_checkpoint.py), the largest magnitudes must be near 1.

Published (arXiv 2505.11853): FID of 3,000 samples 64.37, where the oracle has 28.41 and Ambient diffusion 70.07;
reconstruction at noise 0.01, R = 4 30.71 dB (zero-filled 22.75, A-DPS 27.28, SSDU 29.65), R = 6 28.86 dB. "R = 4" keeps
30.9 % of the columns: an effective 3.24. Their metric scales each image by its own minimum and maximum and averages
SSIM over rows.
"""

from ml_collections import ConfigDict

from msm.configs import published, tasks, variants


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' as published, 'smoke' a few steps of a tiny network for tests, and the tasks of MRI."""
    config = published.base(256)
    config.data.update(dir="store/fastmri256", num_coils=16)
    config.masks.update(name="cartesian_random", acceleration=4.0, acs_lines=20)
    config.optim.learning_rate = 5e-5
    config.training.batch_size = 16
    return variants.apply(tasks.published_mri(config), variant, published.MRI)
