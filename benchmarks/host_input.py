"""What the host does while the device computes: how fast it delivers batches, and what memory that takes.

  python benchmarks/host_input.py                                    # both demo configs, a minute or two
  python benchmarks/host_input.py --config configs/NAME.py --steps 0  # the ratio of one config alone

The ratio is batches delivered per second times seconds of a train step on this machine's device; at 1 the device would
wait. Memory is measured over `--steps` steps of the input pipeline and a step that costs nothing.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msm import datasets
from msm.benchmarks.bench import TrainStep, host_batches_per_second, load_config, median_seconds
from msm.experiment import build
from msm.infra import sharding

ROOT = Path(__file__).resolve().parent.parent

MIB = 2**20
DEMOS = ("configs/brain64_msm.py", "configs/photos64_msm.py")


def resident_mib() -> float:
    """Memory of this process that is in RAM, in MiB, as Linux counts it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def toy_step() -> Callable[[Any], Any]:
    """Returns step(batch): the size of all measurements so far, on the device."""
    add = jax.jit(lambda total, y: total + jnp.mean(jnp.abs(y)), donate_argnums=0)
    total = [jnp.zeros(())]

    def step(batch) -> None:
        total[0] = add(total[0], batch.y)

    return step


def memory_over_steps(config, steps: int, step: Callable[[Any], Any], samples: int = 20) -> np.ndarray:
    """Runs the input pipeline and `step` of its batches, placed on the devices as training does.

    Returns:
      Resident memory in MiB at `samples` moments evenly spread over `steps` steps, after a twentieth of them.
    """
    stream, mesh = datasets.get_train_iterator(config), sharding.get_mesh()
    start = max(1, steps // 20)
    moments = set(np.linspace(start, steps, samples).astype(int).tolist())
    found = []
    for number in range(1, steps + 1):
        step(sharding.shard_batch(next(stream), mesh))
        if number in moments:
            found.append(resident_mib())
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", help="config files whose stores exist; default: both demos")
    parser.add_argument("--steps", type=int, default=2000, help="of the memory test; 0: none (default 2000)")
    flags = parser.parse_args()
    os.chdir(ROOT)
    for path in flags.config or DEMOS:
        config = load_config(path)
        print(f"{path}, batches of {config.training.batch_size}, {os.cpu_count()} cores")
        delivered = host_batches_per_second(config)
        seconds = median_seconds(TrainStep(build(config)), 5)
        told = f"{delivered:.1f} batches/s; a train step takes {seconds:.3f} s on {jax.devices()[0].device_kind}"
        print(f"  input {told}: {delivered * seconds:.1f} x what it consumes", flush=True)
        if flags.steps:
            found = memory_over_steps(config, flags.steps, toy_step())
            spread = f"{found.min():.0f} to {found.max():.0f} MiB ({found.max() / found.min() - 1:.1%})"
            ends = f"first {found[0]:.0f}, last {found[-1]:.0f}"
            print(f"  memory over {flags.steps} steps: {spread}, {ends}", flush=True)


if __name__ == "__main__":
    main()
