"""Coil map estimators side by side: `python benchmarks/coil_maps.py [--size 64] [--slices 4]`, a minute or two.

Prints a table with one row per estimator, ours and what is installed of BART (`ecalib`, the program with its files)
and sigpy (`EspiritCalib`): seconds per slice, agreement with our ESPIRiT and, inside the head, with the true maps
(median and 1st percentile over pixels of |<c1,c2>|), and PSNR of CG-SENSE with the maps.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import os
import shutil
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from msm.configs.default import get_config
from msm.operators.acquisition import Acquisition
from msm.operators.coils import COIL_MAPS, get_coil_maps
from msm.operators.measurement import Measurement
from msm.operators.transform import TRANSFORMS
from msm.solvers.cg_sense import get_cg_sense_solver
from tests.conformance.test_bart import psnr
from tests.conformance.test_coil_maps import bart_maps, correlations
from tests.helpers.brain_scans import brain_scans

ROOT = Path(__file__).resolve().parent.parent

REPEATS = 3


def ours(name: str) -> Callable[[Measurement], np.ndarray]:
    return lambda scans: np.asarray(get_coil_maps(name)(scans.y, scans.mask))


def bart(scans: Measurement) -> np.ndarray:
    """`ecalib -m1`, with the kernel that decides on our support."""
    columns = 6 if scans.y.shape[-1] == 128 else 3
    with tempfile.TemporaryDirectory() as folder:
        return bart_maps(Path(folder), scans.y, "-k", f"6:{columns}:1")


def sigpy(scans: Measurement) -> np.ndarray:
    """`EspiritCalib` on the square of the ACS lines, with BART's thresholds."""
    block, kernel = (12, 6) if scans.y.shape[-1] == 128 else (6, 3)
    settings = {"calib_width": block, "kernel_width": kernel, "thresh": 0.001**0.5, "crop": 0.8, "show_pbar": False}
    calib = importlib.import_module("sigpy.mri").app.EspiritCalib
    return np.stack([calib(y, **settings).run() for y in scans.y])


def estimators() -> dict[str, Callable[[Measurement], np.ndarray]]:
    """By name; says what is missing."""
    found: dict[str, Callable[[Measurement], np.ndarray]] = {name: ours(name) for name in COIL_MAPS.names()}
    if shutil.which("bart"):
        found["BART"] = bart
    else:
        print("the program `bart` is not installed")
    if importlib.util.find_spec("sigpy"):
        found["sigpy"] = sigpy
    else:
        print("the package `sigpy` is not installed")
    return found


def agreement(maps: np.ndarray, others: np.ndarray) -> str:
    found = correlations(maps, others)
    return f"{np.median(found):.5f} {np.percentile(found, 1):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128, choices=(64, 128), help="4 coils at 64, 8 coils at 128")
    parser.add_argument("--slices", type=int, default=4)
    flags = parser.parse_args()
    scans, images = brain_scans(flags.size, flags.slices)
    truth = np.asarray(scans.maps)
    head = (np.abs(images) > 0.1 * np.abs(images).max((1, 2), keepdims=True))[:, None]
    experiment = types.SimpleNamespace(operator=Acquisition(TRANSFORMS["multicoil_fourier"]()))
    solve = jax.jit(get_cg_sense_solver(get_config(), experiment).solve)

    def reconstruct(maps: np.ndarray) -> float:
        images_found = np.asarray(solve(None, None, dataclasses.replace(scans, maps=maps), {"lam": 0.001}))[0]
        return float(np.mean([psnr(i, f) for i, f in zip(images, images_found, strict=True)]))

    print(
        f"{flags.size} x {flags.size}, {scans.y.shape[1]} coils, {jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    )
    print(f"{'':10} {'s/slice':>8} {'first call':>11}   {'with ours':>14}   {'with truth':>14} {'CG-SENSE':>11}")
    reference = ours("espirit")(scans)
    jax.clear_caches()  # so that the first call below compiles
    for name, estimate in estimators().items():
        seconds, maps = [], reference
        for _ in range(1 + REPEATS):
            begin = time.perf_counter()
            maps = estimate(scans)
            seconds.append(time.perf_counter() - begin)
        per_slice = np.median(seconds[1:]) / flags.slices
        print(
            f"{name:10} {per_slice:8.3f} {seconds[0]:9.1f} s   {agreement(maps, reference):>14}   "
            f"{agreement(maps * head, truth):>14} {reconstruct(maps):8.2f} dB"
        )
    print(f"{'true maps':10} {'':8} {'':11}   {'':14}   {'':14} {reconstruct(truth):8.2f} dB")


if __name__ == "__main__":
    main()
