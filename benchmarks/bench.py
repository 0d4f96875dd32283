"""What a run costs on this machine: `python benchmarks/bench.py [--config configs/NAME.py]`, a few minutes.

Prints seconds per train step and per reconstruction, the network's share of the sampler's time, what the machine
reaches in a plain matrix product beside it, how fast the host delivers batches, and compilation at a first and a
second start.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from msm import datasets
from msm.experiment import Experiment, build
from msm.infra import sharding
from msm.losses import get_loss_fn
from msm.models.init import init_params
from msm.optimizer import Layout, get_optimizer, get_step_fn, init_state
from msm.solvers import get_solver

ROOT = Path(__file__).resolve().parent.parent


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall-clock seconds of `run`, whose result is waited for; one call before does not count."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def gigaflops(compiled) -> float:
    """Floating-point operations of a compiled program in 1e9, as XLA counts them."""
    analysis = compiled.cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"] / 1e9


def matrix_product_gflops(size: int = 2048) -> float:
    """GFLOP/s of a float32 matrix product: what the machine can do."""
    a = jnp.ones((size, size))
    product = jax.jit(jnp.dot)
    return 2 * size**3 / median_seconds(lambda: product(a, a), 5) / 1e9


class TrainStep:
    """The real train step of a config on its real data."""

    def __init__(self, experiment: Experiment):
        config, mesh = experiment.config, experiment.mesh
        loss_fn = get_loss_fn(config, experiment.schedule, experiment.transform, experiment.masks, experiment.denoise)
        optimizer = get_optimizer(config)
        params = init_params(experiment.model, config.seed, experiment.image_shape)
        self.state = sharding.replicate(init_state(params, optimizer), mesh)
        self.batch = sharding.shard_batch(next(datasets.get_train_iterator(config)), mesh)
        self.key = sharding.replicate(jax.random.key(config.seed), mesh)
        step = sharding.data_parallel_step(get_step_fn(config, loss_fn, optimizer, Layout(params)), mesh)
        begin = time.perf_counter()
        self.compiled = step.lower(self.state, self.batch, self.key).compile()
        self.compile_seconds = time.perf_counter() - begin

    def __call__(self):
        self.state, metrics = self.compiled(self.state, self.batch, self.key)
        return metrics


def host_batches_per_second(config, count: int = 100) -> float:
    """How many batches a second the input pipeline delivers to the device."""
    stream = datasets.get_train_iterator(config)
    next(stream)
    begin = time.perf_counter()
    for _ in range(count):
        next(stream)
    return count / (time.perf_counter() - begin)


def sampler_figures(experiment: Experiment) -> dict[str, float]:
    """Seconds per reconstruction of every solver, and the network's share of the MSM sampler's time."""
    config = experiment.config
    example = next(datasets.eval_batches(config, config.eval.split, config.eval.batch_size))
    measurement = jax.tree.map(jnp.asarray, example.measurement)
    params = init_params(experiment.model, config.seed, experiment.image_shape)
    figures, batch, key = {}, config.eval.batch_size, jax.random.key(0)
    for name in config.eval.solvers:
        solver = get_solver(config, experiment, name)
        solve = jax.jit(solver.solve)
        figures[name] = median_seconds(lambda s=solve, h=solver.hyper: s(key, params, measurement, h), 3) / batch
    msm = get_solver(config, experiment, "msm")
    rows = batch * msm.num_samples * config.solver.w  # images in one network call
    images = jnp.zeros((rows, *experiment.image_shape))
    net = jax.jit(lambda p, x, t: experiment.model.apply({"params": p}, x, t))
    call = median_seconds(lambda: net(params, images, jnp.zeros(rows)), 5)
    figures["network share"] = msm.nfe / config.solver.w * call / (figures["msm"] * batch)
    return figures


def cold_and_warm_start(config_path: str) -> tuple[float, float]:
    """Compile seconds of the train step in a new process, with an empty and then a filled compilation cache."""
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            command = [sys.executable, __file__, "--config", config_path, "--compile_only", cache]
            output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
            seconds.append(float(output.strip().splitlines()[-1]))
    return seconds[0], seconds[1]


def load_config(path: str):
    spec = importlib.util.spec_from_file_location("config", ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/brain64_msm.py", help="a config file whose store exists")
    parser.add_argument("--compile_only", metavar="CACHE", help="print the train step's compile seconds and stop")
    flags = parser.parse_args()
    os.chdir(ROOT)
    if flags.compile_only:
        jax.config.update("jax_compilation_cache_dir", flags.compile_only)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = load_config(flags.config)
    experiment = build(config)
    train_step = TrainStep(experiment)
    if flags.compile_only:
        print(train_step.compile_seconds)
        return
    step = median_seconds(train_step, 10)
    work, peak = gigaflops(train_step.compiled), matrix_product_gflops()
    print(f"{flags.config} on {jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores")
    print(f"train step, batch {config.training.batch_size:<3}       {step:8.3f} s   {work / step:6.1f} GFLOP/s")
    print(f"matrix product 2048                    {peak:6.1f} GFLOP/s   (train step: {work / step / peak:.0%} of it)")
    delivered = host_batches_per_second(config)
    print(
        f"host input               {delivered:8.1f} batches/s = {delivered * step:.1f} x what the train step consumes"
    )
    figures = sampler_figures(experiment)
    share = figures.pop("network share")
    for name, seconds in figures.items():
        print(f"{name:<24} {seconds:8.3f} s per slice")
    calls = f"{config.solver.num_levels * config.solver.w} calls x {config.eval.num_samples} samples"
    print(f"msm: network's share     {share:8.1%}   ({calls} per slice)")
    cold, warm = cold_and_warm_start(flags.config)
    print(f"compile the train step   {cold:8.1f} s at the first start, {warm:.1f} s at the second (persistent cache)")


if __name__ == "__main__":
    main()
