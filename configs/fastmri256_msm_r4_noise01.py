"""MSM on 256x256 multi-coil brain scans at nominal R = 4, noise of std 0.1 per real and imaginary entry.

    python main.py --config=configs/fastmri256_msm_r4_noise01.py --workdir=workdir/fastmri256_noise01 --mode=train
    python main.py --config=configs/fastmri256_msm_r4_noise01.py:csmri4 --workdir=workdir/fastmri256_noise01 --mode=eval

Data and network as fastmri256_msm_r4, with a store of noise_std 0.1. A step sends three times as many images through
the network, forward and back: two of the three estimate Stein's unbiased risk. It holds about 240 GiB at most, with
optim.accumulate 4 about 63 (tools/inspect_config.py): one GPU of 80 GB.

Not trained here: the tests trace its loss at full size, and run or trace a step at toy size. Published checkpoint:
fmri_msm_R4_noise0_1_img256.pt; published FID of 3,000 samples: 82.17 (arXiv 2505.11853).
"""

from ml_collections import ConfigDict

from msm.configs import fastmri256_msm_r4, published, variants


def get_config(variant: str = "") -> ConfigDict:
    """Variants as in fastmri256_msm_r4."""
    config = fastmri256_msm_r4.get_config()
    config.data.dir = "store/fastmri256_noise01"
    config.loss.name = "msm_sure"
    return variants.apply(config, variant, published.MRI)
