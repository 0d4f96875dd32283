"""The program's modes, train, evaluate, tune and sample: building the experiment once, then loops and wiring only."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from msm import datasets
from msm.builders import store
from msm.configs.rules import stored
from msm.evaluation import held_out as tuning
from msm.evaluation.metrics import get_metrics
from msm.infra import checkpoints, preemption, processes, rounds, sharding, workdir, writers
from msm.infra.atomic import atomic_write_bytes, drop_unfinished
from msm.infra.errors import UserError
from msm.infra.progress import Progress
from msm.infra.tally import Tally
from msm.losses import get_loss_fn
from msm.models.denoiser import get_denoise_fn
from msm.models.init import init_params, param_shapes
from msm.models.registry import get_model
from msm.modes import em, reconstruction, tuned
from msm.modes import sample as generation
from msm.operators.acquisition import Acquisition
from msm.operators.masks import MaskDistribution, get_masks
from msm.operators.operator import Operator
from msm.operators.shape import image_size
from msm.operators.tasks import get_task
from msm.operators.transform import Transform, get_transform
from msm.optimizer import Layout, get_optimizer, get_step_fn, init_state
from msm.reports import figures
from msm.sde_lib import Schedule, get_schedule
from msm.solvers import get_solver


@dataclass(frozen=True)
class Experiment:
    """Everything static that a config describes; built once, closed over by all that is compiled.

    `operator` is the H of what solvers are given: the store's acquisitions, until evaluation puts its task's there.
    """

    config: ConfigDict
    mesh: jax.sharding.Mesh
    schedule: Schedule
    transform: Transform
    operator: Operator
    masks: MaskDistribution
    model: Any
    denoise: Callable

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H,W,channels) as the network sees an image."""
        return (*image_size(self.config), self.transform.channels)

    def template_params(self):
        """Shapes and placement of the parameters, without any values."""
        place = sharding.replicated(self.mesh)
        shapes = param_shapes(self.model, self.image_shape)
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes)


def build(config: ConfigDict, mesh: jax.sharding.Mesh | None = None) -> Experiment:
    """Builds schedule, operators and network of a config. Raises UserError for unknown names."""
    transform, schedule = get_transform(config), get_schedule(config)
    model = get_model(config, transform.channels)

    def net(params, images, time):
        return model.apply({"params": params}, images, time)

    return Experiment(
        config=config,
        mesh=sharding.get_mesh() if mesh is None else mesh,
        schedule=schedule,
        transform=transform,
        operator=Acquisition(transform, config.solver.cg_steps),
        masks=get_masks(config),
        model=model,
        denoise=get_denoise_fn(config, schedule, transform, net),
    )


def train(config: ConfigDict, folder: str) -> None:
    """Trains, or resumes training, in `folder` until `training.num_steps`; loss 'em' in rounds (modes/em.py).

    Raises Stopped after SIGTERM or SIGINT, within a step and with that step saved.
    """
    if config.loss.name == "em":
        em.train(config, folder)
        return
    with processes.together():
        data = datasets.get_train_iterator(config)  # opens acquisitions only; before anything is written
        _check_noise(config)
        experiment = build(config)
        info = datasets.dataset_info(config)
        order = {"seed": config.seed, "store": {**info["settings"], "examples": info["counts"]["train"]}}
    with processes.together():
        opened = stored.open_workdir(folder, config, "train", order)
    with opened as run:
        writers.setup_logging(run.root, "train")
        with (
            preemption.watch() as notice,
            writers.MetricWriter(run.root) as metrics,
            checkpoints.Checkpoints(run.root, config.training.checkpoint_every, config.training.resume_every) as saved,
        ):
            _train_loop(experiment, run, data, metrics, saved, notice)


def _train_loop(experiment: Experiment, run, data, metrics, saved, notice: preemption.Notice) -> None:
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
    with Progress(training.num_steps, start, "train") as progress:
        for step in range(start + 1, training.num_steps + 1):
            batch = sharding.shard_batch(next(data), mesh)
            state, results = step_fn(state, batch, key)
            tally.add(step, results)
            last, stop = step == training.num_steps, notice.reached(step)
            logged = step % training.log_every == 0 or last
            if logged or saved.due(step, last, stop):
                values = tally.read()
                if logged:
                    metrics.write(step, values)
                    progress.update(step, **values)
            if draw_pictures and (step % training.sample_every == 0 or last):  # before the step counts as done
                picture = draw_pictures(layout.unflatten(sharding.to_host(state.ema_params)))
                metrics.image(step, "samples", picture)
                atomic_write_bytes(run.path(f"samples/step_{step:07d}.png"), figures.encode_png(picture))
            if saved.due(step, last, stop):
                tree = layout.to_tree(sharding.to_host(state))
                saved.save(step, tree, data, {"step": step, **tally.meta()}, last, stop)
            if stop and not last:
                saved.wait()
                notice.stop(f"step {step} of {training.num_steps}, which is saved")


def _check_noise(config: ConfigDict) -> None:
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


def evaluate(config: ConfigDict, folder: str, command: str = "") -> dict[str, Any]:
    """Reconstructs a split with every solver of `eval.solvers`, in rounds that a second start does not repeat.

    Writes rounds/*.npz, metrics.csv, summary.json and report.html into `eval.folder` of the workdir; returns the
    summary.
    """
    settings, first = config.eval, jax.process_index() == 0
    with processes.together():
        info = datasets.dataset_info(config)
        experiment = build(config)
        task = get_task(config, experiment.transform)
        experiment = dataclasses.replace(experiment, operator=task.operator)
        solvers = {name: get_solver(config, experiment, name) for name in settings.solvers}
        network = any(solver.nfe for solver in solvers.values())
        check_folders(config, folder, "eval", network)
        solvers = tuned.apply(settings.tuned, solvers) if settings.tuned else solvers
        measures, absent = get_metrics(config)
        batches = list(datasets.eval_batches(config, settings.split, settings.batch_size, settings.max_examples))
    params, origin = load_params(experiment, folder) if network else (None, {})
    with processes.together():
        opened = stored.open_workdir(folder, config, "eval")
    with opened as run:
        setup_logging(run, origin)
        runners = {name: sharding.data_parallel_solve(s.solve, experiment.mesh) for name, s in solvers.items()}
        done, compiled = [], {}
        stamp = reconstruction.stamp_of(config, solvers, params, info)
        with preemption.watch() as notice, Progress(len(batches), 0, "eval", unit="round") as progress:
            for index, example in enumerate(batches):
                path = rounds.path_of(run.path(settings.folder), index)
                arrays = rounds.read(path, stamp) if first else None  # the others may not see the folder of process 0
                if sharding.from_first(np.int32(arrays is None)):
                    arrays = reconstruction.solve_round(experiment, solvers, runners, compiled, params, example)
                    if first:
                        rounds.write(path, stamp, arrays)
                if first:
                    done.append(arrays)
                progress.update(index + 1)
                if notice.reached(index) and index + 1 < len(batches):
                    notice.stop(f"round {index + 1} of {len(batches)}")
        if not first:
            return {}
        drop_unfinished(run.path(settings.folder))
        rounds.drop_beyond(run.path(settings.folder), len(batches))
        return reconstruction.write_report(config, run, done, solvers, task, info, origin, command, measures, absent)


def check_folders(config: ConfigDict, folder: str, mode: str, network: bool = True) -> None:
    """Raises UserError if the workdir cannot be used or holds no checkpoint: known before data are read."""
    stored.check_workdir(folder, config, mode)
    if network:
        checkpoints.kept_steps(config.eval.checkpoint or folder)


def load_params(experiment: Experiment, folder: str) -> tuple[Any, dict[str, Any]]:
    """EMA parameters of the workdir, or of the folder that `eval.checkpoint` names, and what a report says of them.

    The latter: 'checkpoint', 'training step', and 'checkpoint warning' if that is not the newest that there was.
    """
    named = experiment.config.eval.checkpoint
    stored.check_checkpoint_config(named or folder, experiment.config)
    told: list[str] = []
    params, step = checkpoints.load_ema_params(named or folder, experiment.template_params(), warn=told.append)
    warning = {"checkpoint warning": told[0]} if told else {}
    return params, {"checkpoint": named or "this workdir", "training step": step, **warning}


def setup_logging(run: workdir.Workdir, origin: dict[str, Any]) -> None:
    """Opens the log of the run's mode, which begins with the warning of `load_params`, if there is one."""
    writers.setup_logging(run.root, run.mode)
    if "checkpoint warning" in origin:
        logging.warning("%s", origin["checkpoint warning"])


def sample(config: ConfigDict, folder: str, command: str = "") -> dict[str, Any]:
    """Draws `sampling.num_images` images with the coils of training acquisitions, and judges them.

    Writes rounds/*.npz (which a second start does not repeat), images.npz, grid.png, summary.json, memorisation.csv
    and report.html into `samples/<sampling.folder>` of the workdir; returns the summary.
    """
    with processes.together():
        acquisitions = datasets.open_acquisitions(config, "train")
        check_folders(config, folder, "sample")
        judge = generation.get_judge(config)
        experiment = build(config)
    params, origin = load_params(experiment, folder)
    with processes.together():
        opened = stored.open_workdir(folder, config, "sample")
    with opened as run:
        setup_logging(run, origin)
        where = run.path(f"samples/{config.sampling.folder}")
        if jax.process_index() == 0:
            drop_unfinished(where)
        planned = generation.draw(experiment, params, acquisitions, where)
        return generation.report(experiment, acquisitions, judge, planned, where, origin, command)


def tune(config: ConfigDict, folder: str, command: str = "") -> dict[str, Any]:
    """Searches the hyper-parameters of `tune.solver` that serve the task of evaluation best, until `tune.trials`.

    Writes study.db (whose trials a second start does not repeat), trials.csv, history.png, slices.png and best.json,
    for `eval.tuned`, into `tune.folder` of the workdir; returns the solver's entry of best.json.
    """
    from msm.modes import tune as study  # loads Optuna, which no other mode needs

    settings = config.tune
    given, config = config, config.copy_and_resolve_references()
    config.eval.num_samples = settings.num_samples
    with processes.together():
        info = datasets.dataset_info(config, config.eval.acquisition)
        experiment = build(config)
        experiment = dataclasses.replace(experiment, operator=get_task(config, experiment.transform).operator)
        solver = get_solver(config, experiment, settings.solver)
        objective = tuning.get_objective(config, experiment.operator)
        search = solver.spread if objective.of_spread else solver.search
        if config.eval.tuned:  # perhaps the very file that this search writes: what is searched begins as configured
            found = tuned.apply(config.eval.tuned, {settings.solver: solver})[settings.solver]
            solver = dataclasses.replace(found, hyper={**found.hyper, **{name: solver.hyper[name] for name in search}})
        if not search:
            raise UserError(
                f"tune.solver is {settings.solver!r}: it declares no hyper-parameter to search by tune.objective "
                f"{settings.objective!r}; choose another"
            )
        check_folders(given, folder, "tune", solver.nfe > 0)
        read = datasets.eval_batches if objective.needs_references else datasets.measurement_batches
        batches = [objective.judge(b) for b in read(config, settings.split, settings.batch_size, settings.max_examples)]
    batches = study.count_together(batches)
    params, origin = load_params(experiment, folder) if solver.nfe else (None, {})
    with processes.together():
        if not any(batch.counts.any() for batch in batches):
            raise UserError(f"{config.data.dir}, {settings.split!r} has nothing to hide: choose another tune.split")
        opened = stored.open_workdir(folder, given, "tune")
    with opened as run:
        setup_logging(run, origin)
        solve = study.get_solve_fn(experiment, solver, params, batches)

        def evaluate_trial(hyper):
            return study.score_of(solve(hyper))

        if jax.process_index() != 0:
            study.run(None, list(search), evaluate_trial, settings.trials)
            if objective.of_spread:
                study.levels_of(solve, list(search), None, 2)
            return {}
        where, name = run.path(settings.folder), study.name_of(config, solver, params, info)
        drop_unfinished(where)
        with study.Study(where / "study.db", name, search, solver.hyper, config.seed, objective.minimise) as trials:
            study.run(trials, list(search), evaluate_trial, settings.trials)
            facts = {**origin, "command": command}
            return study.write(experiment, solver, objective, batches, trials, solve, where, facts)
