"""From raw files to images: `python benchmarks/raw_scans.py [--slices 6] [--samples 4] [--levels 30] [--acs 12]`.

Writes slices of brain2 (builders/demo/), a person that the shipped checkpoint never saw, as a scanner would: 8
coils with noise of different size, one mask at R = 4, only the sampled lines, arbitrary units; once in every format,
and once with the true coil maps beside k-space. `tools/prepare_mri.py` makes a store of each, `main.py --mode=eval`
reconstructs it with pretrained/brain64_msm, and PSNR is measured against the simulated images.

Prints a table; the exit status is 1 if estimated maps cost 1 dB or more against true maps, or if formats differ by more
than float tolerance. Some minutes on two cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from msm.builders.store import config_flags
from tests.helpers import raw_files
from tests.helpers.raw_files import RawHead

ROOT = Path(__file__).resolve().parent.parent

SIZE, COILS = 64, 8
SOLVERS = ("zero_filled", "cg_sense", "msm", "msm_fast")
MOST_LOSS_DB, FORMATS_AGREE = 1.0, 1e-3


def write(folder: Path, head: RawHead) -> dict[str, list[str]]:
    """Writes every format into a folder of its name; returns the further flags of `tools/prepare_mri.py` for it."""
    flags: dict[str, list[str]] = {"fastmri": [], "ismrmrd": [], "bart": [], "array": ["--axes=schw"]}
    flags |= {"true_maps": ["--axes=schw"]}
    for name in flags:
        (folder / name).mkdir(parents=True)
    raw_files.write_fastmri(folder / "fastmri" / "head.h5", head)
    raw_files.write_lines(folder / "ismrmrd" / "head.h5", head)
    raw_files.write_bart(folder / "bart" / "head", head)
    raw_files.write_npz(folder / "array" / "head.npz", head)
    raw_files.write_npz(folder / "true_maps" / "head.npz", head, maps=head.maps)
    return flags


def run(*command: str) -> None:
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def reconstruct(
    folder: Path, name: str, flags: list[str], solvers: tuple[str, ...], samples: int, levels: int
) -> dict[str, np.ndarray]:
    """Prepares and evaluates; returns the mean image (S,H,W) of every solver, in the units of the raw file."""
    store, workdir = folder / "store" / name, folder / "workdir" / name
    run("tools/prepare_mri.py", f"--in={folder / name}", f"--out={store}", f"--size={SIZE}", "--test=*", *flags)
    manifest = json.loads((store / "manifest.json").read_text())
    run(
        "main.py", "--config=configs/brain64_msm.py", f"--workdir={workdir}", "--mode=eval",
        "--config.eval.checkpoint=pretrained/brain64_msm", f"--config.data.dir={store}",
        *config_flags(manifest["settings"]).split(), f"--config.eval.solvers={solvers}",
        f"--config.eval.num_samples={samples}", f"--config.solver.num_levels={levels}", "--config.eval.batch_size=2",
    )  # fmt: skip
    rounds = [np.load(path) for path in sorted((workdir / "eval" / "rounds").glob("*.npz"))]
    real = np.concatenate([r["example_id"] for r in rounds]) >= 0
    (scale,) = (volume["scale"] for volume in manifest["volumes"].values())
    means = {key for key in rounds[0].files if key.endswith("/mean")}
    return {key.split("/")[0]: scale * np.concatenate([r[key] for r in rounds])[real] for key in means}


def psnr(images: np.ndarray, found: np.ndarray) -> float:
    """Mean over slices of the PSNR of magnitudes in dB; data range: the slice's largest magnitude."""
    error = np.mean((np.abs(images) - np.abs(found)) ** 2, axis=(1, 2))
    return float(np.mean(10 * np.log10(np.abs(images).max(axis=(1, 2)) ** 2 / error)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=6)
    parser.add_argument("--samples", type=int, default=4, help="posterior samples per slice")
    parser.add_argument("--levels", type=int, default=30, help="network calls per sample of msm")
    parser.add_argument(
        "--acs", type=int, default=12, help="fully sampled central lines; the mask may draw more beside"
    )
    parser.add_argument("--noise", type=float, default=0.005, help="noise per scalar; images are about 1 at most")
    parser.add_argument("--out", type=Path, help="folder to keep what is made; default: a temporary one")
    args = parser.parse_args()
    head = raw_files.raw_head(SIZE, args.slices, COILS, args.acs, args.noise)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        flags = write(folder, head)
        found = {
            name: reconstruct(
                folder, name, flags[name],
                SOLVERS if name in ("fastmri", "true_maps") else ("cg_sense",), args.samples, args.levels,
            )
            for name in flags
        }  # fmt: skip
    print(f"{args.slices} slices, {COILS} coils, {args.acs} ACS lines, R = {head.mask.size / head.mask.sum():.2f}")
    print(f"{'PSNR in dB':<14}{'true maps':>12}{'estimated':>12}{'loss':>8}")
    losses = {}
    for solver in SOLVERS:
        true, estimated = (psnr(head.images, found[name][solver]) for name in ("true_maps", "fastmri"))
        losses[solver] = true - estimated
        print(f"{solver:<14}{true:>12.2f}{estimated:>12.2f}{true - estimated:>8.2f}")
    first = found["fastmri"]["cg_sense"]
    differences = {
        name: float(np.linalg.norm(found[name]["cg_sense"] - first) / np.linalg.norm(first))
        for name in ("ismrmrd", "bart", "array")
    }
    print("relative difference of CG-SENSE to fastmri:", ", ".join(f"{n} {d:.1e}" for n, d in differences.items()))
    sys.exit(int(losses["msm"] >= MOST_LOSS_DB or max(differences.values()) > FORMATS_AGREE))


if __name__ == "__main__":
    main()
