"""Starts the processes of a run, each with its own number of CPU devices, and reads what they left."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from ml_collections import ConfigDict

from msm.configs import brain64_msm
from tests.helpers import tiny_model
from tests.helpers.paths import ROOT

NUM_STEPS = 8
SETTINGS = {
    **tiny_model.SETTINGS,
    "training.batch_size": 8,
    "training.num_steps": NUM_STEPS,
    "training.resume_every": 100,
    "training.checkpoint_every": 100,
    "training.sample_every": 100,
    "training.picture_solver": "zero_filled",
    "eval.solvers": ("zero_filled", "msm"),
    "eval.batch_size": 8,
    "sampling.batch_size": 8,
    "sampling.num_images": 10,
    "sampling.check_images": 4,
    "tune.batch_size": 8,
    "tune.trials": 2,
    "tune.max_examples": 3,
}


def get_config(store: str, changes: dict[str, object] | None = None) -> ConfigDict:
    """The smoke variant of the demo on `store` with SETTINGS, then `changes`."""
    config = brain64_msm.get_config("smoke")
    config.update_from_flattened_dict({"data.dir": store, **SETTINGS, **(changes or {})})
    return config


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(devices: int, cache: Path) -> dict[str, str]:
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PJRT_NPROC": "16",  # threads of XLA's pool, by default one per core: more devices than these can deadlock
        "OPENBLAS_NUM_THREADS": "1",  # else as many again in every one of them wait for each other by spinning
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # of machine code: compiles faster, the same collectives
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(folder: Path, job: str, devices: int, count: int = 1, **what) -> list[subprocess.Popen]:
    """Starts `count` processes of worker.py with `devices` each; `what` is the rest of their job."""
    path = folder / f"{job}.json"
    told = {"workdirs": str(folder / "runs"), "count": count, "coordinator": f"127.0.0.1:{free_port()}"}
    path.write_text(json.dumps(told | what))
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.scale.worker", str(path), str(index)],
            cwd=ROOT,
            env=environment(devices, folder / "cache"),
            **options,
        )
        for index in range(count)
    ]


def finish(started: list[subprocess.Popen], *statuses: int) -> list[str]:
    """Waits for the processes, which must end with these statuses (0 where none are given); returns what they said."""
    try:
        told = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    found = [process.returncode for process in started]
    assert found == list(statuses or [0] * len(started)), "\n\n".join([str(found), *told])
    return told


def notes(folder: Path, job: str, index: int = 0) -> dict:
    return json.loads((folder / f"{job}.{index}.json").read_text())
