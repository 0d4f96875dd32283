"""How long `tools/prepare_mri.py` takes per slice: `python benchmarks/preparation_time.py [--size 256] [--coils 16]`.

Writes two fastMRI files of slices of brain2 (builders/demo/; detail of 128 x 128, interpolated), fully sampled
with twofold oversampled readout and noise, one with more slices than the other, prepares each for training in a process
of its own, and divides the difference in CPU seconds: starting and compiling do not count. CPU seconds are those of all
threads; wall time is these over the cores that are free. Measure on a quiet machine: threads that wait count too.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

from msm.builders.demo.heads import SOURCE
from msm.builders.demo.simulate import draw_maps, fft2c, ifft2c
from tests.builders.test_raw_readers import header
from tests.helpers.raw_files import oversampled

ROOT = Path(__file__).resolve().parent.parent


def write(path: Path, size: int, coils: int, slices: int) -> None:
    """A fastMRI file of `slices` slices, 4 to 19 of the head again and again; size even, at least 128."""
    with np.load(SOURCE, allow_pickle=False) as heads:
        magnitudes = heads["brain2"][np.resize(np.arange(4, 20), slices)].astype(np.float64)
    before = (size - magnitudes.shape[-1]) // 2
    padding = (before, size - magnitudes.shape[-1] - before)
    images = ifft2c(np.pad(fft2c(magnitudes), ((0, 0), padding, padding)))
    rng = np.random.default_rng(0)
    maps = draw_maps(coils, size, rng)
    with h5py.File(path, "w") as file:
        kept = file.create_dataset("kspace", (slices, coils, 2 * size, size), np.complex64)
        for index, image in enumerate(images):
            kspace = fft2c(maps * image)
            noise = rng.standard_normal((2, *kspace.shape)) * 0.005 * np.abs(image).max()
            kept[index] = oversampled((kspace + noise[0] + 1j * noise[1])[None])[0]
        file["ismrmrd_header"] = header(2 * size, size)


def seconds(folder: Path, size: int, coils: int, slices: int) -> float:
    """CPU seconds of preparing a file of so many slices."""
    raw = folder / f"raw{slices}"
    raw.mkdir()
    write(raw / "head.h5", size, coils, slices)
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "tools/prepare_mri.py", f"--in={raw}", f"--out={folder / f'store{slices}'}"]
    subprocess.run([*command, f"--size={size}", "--train=*"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="rows and columns, even, at least 128")
    parser.add_argument("--coils", type=int, default=16)
    parser.add_argument("--slices", type=int, nargs=2, default=(2, 6), help="of the two files")
    args = parser.parse_args()
    if args.size % 2 or args.size < 128 or len({*args.slices}) == 1 or min(args.slices) < 1:
        parser.error("--size must be even and at least 128, --slices two different numbers")
    with tempfile.TemporaryDirectory() as folder:
        few, many = (seconds(Path(folder), args.size, args.coils, count) for count in sorted(args.slices))
    per_slice = (many - few) / (max(args.slices) - min(args.slices))
    start = few - min(args.slices) * per_slice
    print(f"{args.size} x {args.size}, {args.coils} coils: {per_slice:.1f} CPU s per slice, {start:.0f} CPU s to start")


if __name__ == "__main__":
    main()
