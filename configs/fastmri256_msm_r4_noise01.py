"""MSM on 256x256 multi-coil brain scans at nominal R = 4, noise of std 0.1 per real and imaginary entry.

    python main.py --config=configs/fastmri256_msm_r4_noise01.py --workdir=workdir/fastmri256_noise01 --mode=train
    python main.py --config=configs/fastmri256_msm_r4_noise01.py:csmri4 --workdir=workdir/fastmri256_noise01 --mode=eval

Data, network and hardware as fastmri256_msm_r4, with a store of noise_std 0.1. A step makes three network calls: two of
them estimate Stein's unbiased risk. Not trained here: only ':smoke' has been run, by the tests. Published checkpoint:
fmri_msm_R4_noise0_1_img256.pt; published FID of 3,000 samples: 82.17 (arXiv 2505.11853).
"""

from ml_collections import ConfigDict

from configs import fastmri256_msm_r4, published, variants


def get_config(variant: str = "") -> ConfigDict:
    """Variants as in fastmri256_msm_r4."""
    config = fastmri256_msm_r4.get_config()
    config.data.dir = "store/fastmri256_noise01"
    config.loss.name = "msm_sure"
    return variants.apply(config, variant, published.MRI)
