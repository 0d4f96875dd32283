"""The program's modes, train, evaluate, tune and sample: open, build, run."""

from typing import Any

from ml_collections import ConfigDict

from msm import datasets
from msm.configs.rules import stored
from msm.experiment import build
from msm.infra import checkpoints, preemption, processes, trackers, workdir, writers
from msm.modes import em, opening
from msm.modes import evaluate as evaluation
from msm.modes import sample as generation
from msm.modes import train as training


def train(config: ConfigDict, folder: str) -> None:
    """Trains, or resumes training, in `folder` until `training.num_steps`; some losses in rounds (modes/em.py).

    Raises Stopped after SIGTERM or SIGINT, within a step and with that step saved.
    """
    if config.loss.name in em.LOSSES:
        em.train(config, folder)
        return
    with processes.together():
        data = datasets.get_train_iterator(config)  # opens acquisitions only; before anything is written
        training.check_noise(config)
        experiment = build(config)
        order = training.order_of(config)
        package = trackers.find(config.training.tracker)
    with processes.together():
        opened = stored.open_workdir(folder, config, "train", order)
    with opened as run:
        writers.setup_logging(run.root, "train")
        with (
            preemption.watch() as notice,
            writers.MetricWriter(run.root, trackers.Tracker(package, run.root, workdir.flat(config))) as metrics,
            checkpoints.Checkpoints(run.root, config.training.checkpoint_every, config.training.resume_every) as saved,
        ):
            training.loop(experiment, run, data, metrics, saved, notice)


def evaluate(config: ConfigDict, folder: str, command: str = "") -> dict[str, Any]:
    """Reconstructs a split with every solver of `eval.solvers`, in rounds that a second start does not repeat.

    Writes rounds/*.npz, metrics.csv, summary.json and report.html into `eval.folder` of the workdir; returns the
    summary, which is empty but on process 0.
    """
    with processes.together():
        planned = evaluation.plan(config)
        opening.check_folders(config, folder, "eval", planned.network)
    params, origin = opening.load_params(planned.experiment, folder) if planned.network else (None, {})
    with processes.together():
        opened = stored.open_workdir(folder, config, "eval")
    with opened as run:
        opening.setup_logging(run, origin)
        where = run.path(config.eval.folder)
        return evaluation.report(planned, evaluation.solve(planned, params, where), where, origin, command)


def sample(config: ConfigDict, folder: str, command: str = "") -> dict[str, Any]:
    """Draws `sampling.num_images` images with the coils of training acquisitions, and judges them.

    Writes rounds/*.npz (which a second start does not repeat), images.npz, grid.png, summary.json, memorisation.csv
    and report.html into `samples/<sampling.folder>` of the workdir; returns the summary.
    """
    with processes.together():
        acquisitions = datasets.open_acquisitions(config, "train")
        opening.check_folders(config, folder, "sample")
        judge = generation.get_judge(config)
        experiment = build(config)
    params, origin = opening.load_params(experiment, folder)
    with processes.together():
        opened = stored.open_workdir(folder, config, "sample")
    with opened as run:
        opening.setup_logging(run, origin)
        where = run.path(f"samples/{config.sampling.folder}")
        drawn = generation.draw(experiment, params, acquisitions, where)
        return generation.report(experiment, acquisitions, judge, drawn, where, origin, command)


def tune(config: ConfigDict, folder: str, command: str = "") -> dict[str, Any]:
    """Searches the hyper-parameters of `tune.solver` that serve the task of evaluation best, until `tune.trials`.

    Writes study.db (whose trials a second start does not repeat), trials.csv, history.png, slices.png and best.json,
    for `eval.tuned`, into `tune.folder` of the workdir; returns the solver's entry of best.json.
    """
    from msm.modes import tune as tuning  # loads Optuna, which no other mode needs

    with processes.together():
        planned = tuning.plan(config)
        opening.check_folders(config, folder, "tune", planned.solver.nfe > 0)
    params, origin = opening.load_params(planned.experiment, folder) if planned.solver.nfe else (None, {})
    planned = tuning.count_together(planned)
    with processes.together():
        tuning.require_hidden(planned)
        opened = stored.open_workdir(folder, config, "tune")
    with opened as run:
        opening.setup_logging(run, origin)
        return tuning.search(planned, params, run.path(config.tune.folder), origin, command)
