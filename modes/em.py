"""Training by expectation and maximisation: complete the training acquisitions, learn from the completions, again.

Rozet et al. 2024 (arXiv 2405.13712) for MSM. A round completes every training acquisition with the parameters of the
round before (E: posterior samples; at the start l1-wavelet reconstructions, or samples of another checkpoint), then
trains on them as on whole images (M: loss 'em', `em.steps` steps with an optimiser of their own). All is a function of
the acquisitions. After each round acquired entries of another split are hidden and predicted; evaluation is given the
round that predicts them best.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import flax.struct
import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from msm import datasets
from msm.builders.order import epoch_order
from msm.configs.rules import stored
from msm.evaluation import held_out
from msm.experiment import build
from msm.infra import checkpoints, preemption, processes, sharding, trackers, workdir, writers
from msm.infra.atomic import atomic_write_json
from msm.infra.errors import UserError
from msm.infra.progress import Progress
from msm.infra.tally import Tally
from msm.infra.watch import watching
from msm.losses import get_loss_fn
from msm.models.denoiser import get_denoise_fn
from msm.models.init import init_params
from msm.modes import completion
from msm.modes.train import order_of
from msm.operators.whole_image import WholeImage
from msm.optimizer import Layout, TrainState, get_optimizer, get_step_fn, init_state
from msm.solvers import get_solver

LOSSES = ("em", "fill_in")  # that are trained here
MAXIMISE, JUDGE = 0x3A, 0x3D  # set the keys of training and of judging apart from those of the other modes
_ENDLESS = 2**40  # batches


@flax.struct.dataclass
class RoundState:
    """What a run needs to go on, also within a round; in checkpoints vectors are trees (`Layout.to_tree`).

    Attributes:
      train: on the devices; with `em.restart` of the round alone, and its step counts from 0 in every round.
      start: (N,) numpy, the parameters that the round's completions are made with.
      ema_params: (N,) numpy, of the best round so far, before the first one's end those that the run began with: what
        evaluation, tuning and sampling load.
    """

    train: TrainState
    start: Any
    ema_params: Any


def train(config: ConfigDict, folder: str) -> None:
    """Runs, or resumes, the rounds that make up `training.num_steps`, `em.steps` each, in `folder`.

    Writes what every training writes and em/rounds.json: of each round the held-out error, and which is the best.
    Raises UserError before anything is written, and Stopped after SIGTERM or SIGINT with all saved.
    """
    with processes.together():
        config = completion.on_acquisitions(config)
        experiment = build(config)
        completion.check(config)
        info, order = datasets.dataset_info(config), order_of(config)
        judge = Judge(experiment)
        if config.em.checkpoint:
            stored.check_checkpoint_config(config.em.checkpoint, config)
            checkpoints.kept_steps(config.em.checkpoint)
        package = trackers.find(config.training.tracker)
        opened = stored.open_workdir(folder, config, "train", order)
    with opened as run:
        writers.setup_logging(run.root, "train")
        with (
            preemption.watch() as notice,
            writers.MetricWriter(run.root, trackers.Tracker(package, run.root, workdir.flat(config))) as metrics,
            checkpoints.Checkpoints(run.root, config.em.steps, config.training.resume_every) as saved,
        ):
            Rounds(experiment, info, judge, run, metrics, saved, notice).run()


class Judge:
    """The mean held-out error of a split's acquisitions (`evaluation.held_out`), with the solver `em.judge`.

    Raises UserError where nothing can be hidden.
    """

    def __init__(self, experiment):
        config, em = experiment.config, experiment.config.em
        objective = held_out.OBJECTIVES["held_out"](config, experiment.operator)
        read = datasets.measurement_batches(config, em.split, em.batch_size, em.max_examples)
        self._batches = [objective.judge(batch) for batch in read]
        counted = np.concatenate([sharding.gather_rows(batch.counts) for batch in self._batches])
        if not counted.any():
            raise UserError(f"{config.data.dir}, {em.split!r} has nothing to hide: choose another em.split")
        self._mesh, self._solver = experiment.mesh, get_solver(config, experiment, em.judge)
        self._solve = sharding.data_parallel_solve(self._solver.solve, self._mesh)
        self._key = sharding.replicate(jax.random.fold_in(jax.random.key(config.seed), JUDGE), self._mesh)

    def error(self, params) -> float:
        """Of these parameters; equal on all processes."""
        scores = []
        for batch in self._batches:
            measurement = sharding.shard_batch(batch.measurement, self._mesh)
            samples = self._solve(self._key, params, measurement, dict(self._solver.hyper))
            score = batch.score(sharding.local_rows(samples, axis=1))
            scores.append(sharding.gather_rows(np.where(batch.counts, score, np.nan)))
        return float(np.nanmean(np.concatenate(scores), dtype=np.float64))


class Rounds:
    """One run of `train`."""

    def __init__(self, experiment, info, judge: Judge, run, metrics, saved, notice: preemption.Notice):
        self._experiment, self._config, self._info = experiment, experiment.config, info
        self._judge, self._run, self._metrics, self._saved, self._notice = judge, run, metrics, saved, notice
        self._mesh = experiment.mesh
        per_round = self._config.copy_and_resolve_references()
        if self._config.em.restart:  # the learning rate rises and falls in every round
            per_round.training.num_steps = self._config.em.steps
        self._optimizer = get_optimizer(per_round)
        self._layout = Layout(experiment.template_params())
        step = get_step_fn(per_round, get_image_loss(experiment), self._optimizer, self._layout)
        self._step = sharding.data_parallel_step(step, self._mesh)
        self._complete = completion.get_complete_fn(experiment, info, run, notice)
        self._total = self._config.training.num_steps

    def run(self) -> None:
        em = self._config.em
        data = self._order()
        state, meta = self._restore(data)
        done = int(meta.get("step", 0))
        self._metrics.rewind(done)
        logging.info(
            "%s %d rounds of %d steps, from step %d of %d", "resuming:" if done else "training:",
            self._total // em.steps, em.steps, done, self._total,
        )  # fmt: skip
        tally, judged = Tally(self._config.training.max_skipped, meta), list(meta.get("rounds", []))
        profile = self._config.training.profile
        with Progress(self._total, done, "train") as progress, watching(self._run.root, done, profile) as self._watch:
            while done < self._total:
                index = done // em.steps
                if done % em.steps == 0:
                    state = self._begin(state)
                    if index:
                        completion.drop(self._run, index - 1)
                with self._watch.evaluation():
                    pool = self._complete(index, self._placed(state.start))
                last = (index + 1) * em.steps
                key = self._key(index)
                for step in range(done + 1, last + 1):
                    with self._watch.input():
                        batch = sharding.shard_batch(pool.batch(next(data)), self._mesh)
                    with self._watch.step(step):
                        trained, results = self._step(state.train, batch, key)
                    state = dataclasses.replace(state, train=trained)
                    tally.add(step, results)
                    self._watch.stepped(step, results)
                    if step < last:
                        self._record(step, state, data, tally, judged, progress)
                done = last
                state, judged = self._conclude(index, state, judged)
                self._record(last, state, data, tally, judged, progress, last=True)

    def _order(self) -> grain.DatasetIterator:
        """The endless stream of places in the pool, (batch size of this process,) int64 each."""
        config = self._config
        count, size = self._info["counts"]["train"] * config.em.num_samples, config.training.batch_size
        share = size // jax.process_count()

        def read(step: int) -> np.ndarray:
            start = step * size + jax.process_index() * share
            return epoch_order(config.seed, count, start, share)

        return iter(grain.MapDataset.range(_ENDLESS).map(read).to_iter_dataset())

    def _restore(self, data) -> tuple[RoundState, dict[str, Any]]:
        experiment, named, layout = self._experiment, self._config.em.checkpoint, self._layout
        state = self._first(init_params(experiment.model, self._config.seed, experiment.image_shape))
        restored = self._saved.restore_latest(jax.eval_shape(layout.to_tree, state), data)
        if restored is not None:
            state = layout.from_tree(restored[0])
            return dataclasses.replace(state, train=sharding.replicate(state.train, self._mesh)), restored[1]
        if named:
            params, step = checkpoints.load_ema_params(named, experiment.template_params())
            logging.info("starting from the parameters of %s, step %d", named, step)
            state = self._first(sharding.to_host(params))
        return dataclasses.replace(state, train=sharding.replicate(state.train, self._mesh)), {}

    def _first(self, params) -> RoundState:
        """The state before the first round, of a tree of numpy arrays."""
        flat = self._layout.flatten(jax.tree.map(np.asarray, params))
        return RoundState(init_state(params, self._optimizer), flat, flat)

    def _begin(self, state: RoundState) -> RoundState:
        """The next round completes with the averaged parameters of the last one, and starts or goes on from them."""
        start = sharding.to_host(state.train.ema_params)
        if not self._config.em.restart:
            return dataclasses.replace(state, start=start)
        fresh = init_state(self._layout.unflatten(start), self._optimizer)
        return RoundState(sharding.replicate(fresh, self._mesh), start, state.ema_params)

    def _placed(self, vector: np.ndarray) -> Any:
        """The network's tree of parameters, on the devices."""
        return sharding.replicate(self._layout.unflatten(vector), self._mesh)

    def _key(self, index: int) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(self._config.seed), MAXIMISE)
        return sharding.replicate(jax.random.fold_in(key, index), self._mesh)

    def _conclude(self, index: int, state: RoundState, judged: list[dict]) -> tuple[RoundState, list[dict]]:
        """Judges a finished round; keeps its parameters for evaluation if it is the best so far."""
        average = sharding.to_host(state.train.ema_params)
        error = self._judge.error(self._placed(average))
        judged = [*judged, {"round": index, "held_out": error}]
        best = min(judged, key=lambda entry: entry["held_out"] if np.isfinite(entry["held_out"]) else np.inf)
        logging.info(
            "round %d: held-out error %.5g; best is round %d with %.5g", index, error, best["round"], best["held_out"]
        )
        if best is judged[-1]:
            state = dataclasses.replace(state, ema_params=average)
        if jax.process_index() == 0:
            atomic_write_json(self._run.path("em/rounds.json"), {"best": best["round"], "rounds": judged})
        return state, judged

    def _record(self, done: int, state, data, tally: Tally, judged, progress: Progress, last: bool = False) -> None:
        """Metrics and checkpoints of a step; `last` of a round. Raises Stopped where a notice to stop has come."""
        stop = self._notice.reached(done)
        logged = last or done % self._config.training.log_every == 0
        if logged or self._saved.due(done, last, stop):
            values = tally.read()
            if logged:
                held = {"held_out": judged[-1]["held_out"]} if last else {}
                self._metrics.write(done, {**values, "round": (done - 1) // self._config.em.steps, **held})
                progress.update(done, **values, **held)
                self._watch.logged(done)
        if self._saved.due(done, last, stop):
            with self._watch.checkpoint(done):
                tree = self._layout.to_tree(state.replace(train=sharding.to_host(state.train)))
                self._saved.save(done, tree, data, {"step": done, "rounds": judged, **tally.meta()}, last, stop)
        if stop and done < self._total:
            self._saved.wait()
            self._notice.stop(f"step {done} of {self._total}, which is saved")


def get_image_loss(experiment) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """The loss of `config.loss.name` for batches of `completion.Pool`.

    For 'em' T is the identity on the coils' support: completions are whole images, whatever they were measured with.
    """
    config, schedule, masks = experiment.config, experiment.schedule, experiment.masks
    if config.loss.name == "fill_in":
        return get_loss_fn(config, schedule, experiment.transform, masks, experiment.denoise)
    whole = WholeImage(experiment.transform)

    def net(params, images, time):
        return experiment.model.apply({"params": params}, images, time)

    return get_loss_fn(config, schedule, whole, masks, get_denoise_fn(config, schedule, whole, net))
