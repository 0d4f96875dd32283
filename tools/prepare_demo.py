"""Makes the demo's data store from data/brains_128.npz: simulated acquisitions of three real heads, and references.

  python tools/prepare_demo.py --size 64 --out store/brain64      # 4 coils, R=4, 6 ACS lines: 5 s, 62 MB
  python tools/prepare_demo.py --size 128 --out store/brain128    # 8 coils, R=4, 12 ACS lines: 20 s, 480 MB
  python tools/prepare_demo.py --size 32 --max_slices 4 --out store/toy

A complete store of the same settings is left alone, a damaged one made again. See data/README.md.
"""

import os
import time
from pathlib import Path

from absl import flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only masks are drawn with JAX: leave accelerators to the training

from msm.builders.demo.heads import Brains, default_settings
from msm.builders.store import prepare_store
from msm.infra import command_line

_OUT = flags.DEFINE_string("out", None, "Folder of the store.", required=True)
_SIZE = flags.DEFINE_integer("size", 64, "Rows and columns of the images: even, 16 to 128.")
_COILS = flags.DEFINE_integer("num_coils", None, "Receive coils; default 8 at 128, else 4.")
_MASK = flags.DEFINE_enum("mask", "cartesian_random", ["cartesian_random", "cartesian_equispaced"], "Distribution.")
_ACCELERATION = flags.DEFINE_float(
    "acceleration", 4.0, "Nominal R: lines outside the ACS are kept with probability 1/R."
)
_ACS = flags.DEFINE_integer("acs_lines", None, "Central lines always kept; default 6 at 64, in proportion, at least 4.")
_NOISE = flags.DEFINE_float("noise_std", 0.005, "Noise per real and per imaginary entry; images are about 1 at most.")
_SEED = flags.DEFINE_integer("seed", 0, "Dataset seed: fixes coils, phase, mask and noise of every example.")
_MAX_SLICES = flags.DEFINE_integer("max_slices", 0, "Most examples per split, for toy stores; 0: all.", lower_bound=0)


def main(_: list[str]) -> None:
    start = time.monotonic()
    settings = default_settings(
        _SIZE.value,
        num_coils=_COILS.value,
        mask=_MASK.value,
        acceleration=_ACCELERATION.value,
        acs_lines=_ACS.value,
        noise_std=_NOISE.value,
        seed=_SEED.value,
    )
    manifest, written = prepare_store(Path(_OUT.value), Brains(settings, _MAX_SLICES.value))
    if not written:
        print(f"{_OUT.value}: already complete")
        return
    counts = ", ".join(f"{split} {count}" for split, count in manifest["counts"].items())
    print(
        f"{_OUT.value}: {counts} acquisitions; R {settings.acceleration:g} nominal, "
        f"{manifest['acceleration']['effective']['train']:.2f} effective; sigma_data {manifest['sigma_data']:.3f}; "
        f"{time.monotonic() - start:.1f} s"
    )


if __name__ == "__main__":
    command_line.start(main)
