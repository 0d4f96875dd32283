"""The training loop: batches, steps, pictures, checkpoints, until the last step or a signal."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from msm import datasets
from msm.builders import store
from msm.experiment import Experiment
from msm.infra import preemption, sharding
from msm.infra.atomic import atomic_write_bytes
from msm.infra.checkpoints import Checkpoints
from msm.infra.errors import UserError
from msm.infra.progress import Progress
from msm.infra.tally import Tally
from msm.infra.watch import watching
from msm.infra.workdir import Workdir
from msm.infra.writers import MetricWriter
from msm.losses import get_loss_fn
from msm.models.init import init_params
from msm.optimizer import Layout, get_optimizer, get_step_fn, init_state
from msm.reports import figures
from msm.sde_lib import get_schedule
from msm.solvers import get_solver


def loop(
    experiment: Experiment, run: Workdir, data, metrics: MetricWriter, saved: Checkpoints, notice: preemption.Notice
) -> None:
    """From the last checkpoint to `training.num_steps`. Raises Stopped as `run_lib.train` does."""
    config, mesh = experiment.config, experiment.mesh
    training = config.training
    optimizer = get_optimizer(config)
    loss_fn = get_loss_fn(config, experiment.schedule, experiment.transform, experiment.masks, experiment.denoise)
    params = init_params(experiment.model, config.seed, experiment.image_shape)
    layout, state = Layout(params), init_state(params, optimizer)
    restored = saved.restore_latest(jax.eval_shape(layout.to_tree, state), data)
    state, meta = (state, {}) if restored is None else (layout.from_tree(restored[0]), restored[1])
    state = sharding.replicate(state, mesh)
    start = int(state.step)
    measured = datasets.dataset_info(config)["sigma_data"]
    if not 0.8 < config.denoiser.sigma_data / measured < 1.25:
        logging.warning("denoiser.sigma_data is %g, the store's is %g", config.denoiser.sigma_data, measured)
    if config.loss.redraw:
        logging.warning("loss.redraw: fresh masks and noise come from clean data at every step; an ablation, not MSM")
    elif config.data.acquisition == "full":
        logging.warning("this run trains on fully sampled, noiseless acquisitions: an oracle, not MSM")
    metrics.rewind(start)
    logging.info(
        "%s %d steps from step %d: %.2f M parameters, batch %d on %d device(s)",
        "training" if restored is None else "resuming:", training.num_steps, start, layout.size / 1e6,
        training.batch_size, mesh.size,
    )  # fmt: skip
    if start >= training.num_steps:
        logging.info("nothing to do: step %d of %d is reached", start, training.num_steps)
        return
    step_fn = sharding.data_parallel_step(get_step_fn(config, loss_fn, optimizer, layout), mesh)
    draw_pictures = _get_picture_fn(experiment) if jax.process_index() == 0 else None
    key = sharding.replicate(jax.random.key(config.seed), mesh)
    tally = Tally(training.max_skipped, meta)
    with Progress(training.num_steps, start, "train") as progress, watching(run.root, start, training.profile) as watch:
        for step in range(start + 1, training.num_steps + 1):
            with watch.input():
                batch = sharding.shard_batch(next(data), mesh)
            with watch.step(step):
                state, results = step_fn(state, batch, key)
            tally.add(step, results)
            watch.stepped(step, results)
            last, stop = step == training.num_steps, notice.reached(step)
            logged = step % training.log_every == 0 or last
            if logged or saved.due(step, last, stop):
                values = tally.read()
                if logged:
                    metrics.write(step, values)
                    progress.update(step, **values)
                    watch.logged(step)
            if draw_pictures and (step % training.sample_every == 0 or last):  # before the step counts as done
                with watch.evaluation():
                    picture = draw_pictures(layout.unflatten(sharding.to_host(state.ema_params)))
                    metrics.image(step, "samples", picture)
                    atomic_write_bytes(run.path(f"samples/step_{step:07d}.png"), figures.encode_png(picture))
            if saved.due(step, last, stop):
                with watch.checkpoint(step):
                    tree = layout.to_tree(sharding.to_host(state))
                    saved.save(step, tree, data, {"step": step, **tally.meta()}, last, stop)
            if stop and not last:
                saved.wait()
                notice.stop(f"step {step} of {training.num_steps}, which is saved")


def order_of(config: ConfigDict) -> dict[str, Any]:
    """What decides which examples and random numbers training sees at which step."""
    info = datasets.dataset_info(config)
    return {"seed": config.seed, "store": {**info["settings"], "examples": info["counts"]["train"]}}


def check_noise(config: ConfigDict) -> None:
    """Raises UserError where the loss speaks of the data's noise and the schedule has no such level."""
    if config.loss.name != "msm_sure":
        return
    schedule = get_schedule(config)
    low, high = (float(schedule.sigma(jnp.asarray(schedule.grid(2))[i])) for i in (1, 0))
    redraw = (config.loss.redraw_noise_std, "loss.redraw_noise_std")
    measured = (store.noise_std(datasets.dataset_info(config)), config.data.dir)
    noise_std, source = redraw if config.loss.redraw else measured
    if not 0.999 * low <= noise_std <= high:  # levels are float32
        raise UserError(
            f"{source} has noise_std {noise_std}: loss.name 'msm_sure' needs noise from the schedule's {low:.3g} to "
            f"{high:.3g}; take loss.name 'msm' for less, or change the schedule"
        )


def _get_picture_fn(experiment: Experiment) -> Callable[[Any], np.ndarray]:
    """Returns draw(params) -> (H,W,3) uint8: four fixed training acquisitions, zero-filled, masks, reconstructions."""
    config = experiment.config
    acquisitions = datasets.open_acquisitions(config, "train")
    alike = acquisitions.most_alike()
    measurement = acquisitions.batch(alike[np.unique(np.linspace(0, len(alike) - 1, 4).astype(int))])
    solver = get_solver(config, experiment, config.training.picture_solver)
    solve = jax.jit(solver.solve)
    zero_filled = np.asarray(experiment.transform.adjoint(jnp.asarray(measurement.y), measurement.maps))
    key = jax.random.key(config.seed)

    def draw(params):
        samples = np.asarray(solve(key, params, measurement, solver.hyper))
        return figures.training_grid(zero_filled, measurement.mask, samples[:2])

    return draw
