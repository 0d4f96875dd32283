"""The upper bound of fastmri256_msm_r4: the same network as an ordinary diffusion model of fully sampled brain scans.

    python main.py --config=configs/fastmri256_oracle.py --workdir=workdir/fastmri256_oracle --mode=train
    python main.py --config=configs/fastmri256_oracle.py:csmri4 --workdir=workdir/fastmri256_oracle --mode=eval

Trains on the acquisitions `full` of the same store, and its log says so. Hardware as fastmri256_msm_r4. Not trained
here: the tests trace its loss at full size, and run or trace a step at toy size. Published checkpoint:
fmri_uncond_R1_noise0_0_img256.pt; published (arXiv 2505.11853): FID of 3,000 samples 28.41, and with the solver DDNM
32.84 dB at R = 4.
"""

from ml_collections import ConfigDict

from msm.configs import fastmri256_msm_r4, published, variants


def get_config(variant: str = "") -> ConfigDict:
    """Variants as in fastmri256_msm_r4."""
    config = published.oracle(fastmri256_msm_r4.get_config())
    return variants.apply(config, variant, published.MRI)
