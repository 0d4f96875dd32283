"""Reconstruction of one raw scan without a store: preparation, rounds of batches, the report."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from msm.builders.raw import RawVolume
from msm.builders.scans.scan import Options, Scan, prepare_scan
from msm.builders.scans.subjects import SUFFIXES
from msm.configs.rules import check as config_check
from msm.configs.rules import stored
from msm.evaluation.metrics import get_metrics
from msm.experiment import Experiment
from msm.infra import workdir
from msm.infra.errors import UserError
from msm.models.levels import attention_at
from msm.modes import evaluate as evaluation
from msm.modes import opening
from msm.operators.measurement import PADDING_ID, EvalExample, Measurement
from msm.operators.shape import Size, as_setting, image_size, rows_and_columns
from msm.reports.placement import placement_of
from msm.reports.volumes import Volume
from msm.solvers import get_solver


def name_of(path: str) -> str:
    """The name of a scan: its file's, without the suffix of a raw format; 2024.01.05_scan.npy is 2024.01.05_scan."""
    file = Path(path)
    return file.stem if file.suffix.lower() in (*SUFFIXES, ".hdr") else file.name


def set_size(config: ConfigDict, size: Size) -> None:
    """Has the network that a config describes reconstruct images of `size`, in place; at its own size no change.

    Attention stays at the levels that were trained with it (`attention_at`). The ACS of p(S) keeps its share of the
    lines, 6 of 64 being 9 of 96: the network knows shares of k-space, no counts of lines.
    """
    (rows, columns), trained = rows_and_columns(size), image_size(config)
    if (rows, columns) != trained:
        model, masks = config.model, config.masks
        model.attention_resolutions = attention_at((rows, columns), model, model.attention_resolutions, trained)
        masks.acs_lines = round(masks.acs_lines * columns / trained[1])
        with config.data.ignore_type():  # one number, or two
            config.data.image_size = as_setting(size)


def fit(config: ConfigDict, raw: RawVolume, options: Options) -> None:
    """Sets what belongs to the scan, in place: size, coils, task. Raises UserError where the config is then wrong."""
    set_size(config, options.shape_of(raw.kspace.shape[2:]))
    config.data.num_coils = min(raw.kspace.shape[1], options.coils or raw.kspace.shape[1])
    config.task.name = "acquired"
    config_check.check(config)


def batches(scan: Scan, name: str, size: int) -> Iterator[EvalExample]:
    """Yields the slices in batches of `size`, their ids from 0; the last is filled up with copies whose id is -1."""
    total = len(scan.y)
    for start in range(0, total, size):
        place = np.arange(start, start + size)
        row = np.where(place < total, place, start)
        measurement = Measurement(
            y=scan.y[row],
            mask=scan.masks[row],
            maps=scan.maps[row],
            noise_std=np.full(size, scan.facts["noise_std"], np.float32),
            example_id=np.where(place < total, place, PADDING_ID).astype(np.int32),
        )
        reference = None if scan.images is None else scan.images[row]
        numbers = np.asarray(scan.facts["slices"], np.int32)[row]
        yield EvalExample(measurement, reference, np.full(size, name), numbers)


def reconstruct(config: ConfigDict, raw: RawVolume, options: Options, name: str, folder: str, command: str) -> Volume:
    """Reconstructs every slice with every solver of `eval.solvers`; writes rounds and report into `folder`.

    Args:
      config: of the checkpoint (`eval.checkpoint`); what belongs to the scan is set here.
      raw, options: the scan and what preparation does with it.
      name: of the scan.
      folder: workdir of the results of this raw file; a round that is there is not computed again.
      command: for the report.

    Returns:
      The volume of the last solver.

    Raises UserError: see `set_size`, `prepare_scan`, `config_check.check`, `stored.open_workdir`; for a folder that
    holds the results of another raw file.
    """
    fit(config, raw, options)
    opening.check_folders(config, folder, "reconstruct")
    source = _source(raw, name)
    recorded = workdir.recorded_data(folder, "reconstruct")
    if recorded not in ({}, source):
        raise UserError(f"{folder} holds the results of another raw file, {recorded['scan']}: choose another --out")
    scan = prepare_scan(raw, options)
    planned = _plan(config, scan, name)
    params, origin = opening.load_params(planned.experiment, folder)
    with stored.open_workdir(folder, config, "reconstruct", source) as run:
        opening.setup_logging(run, origin)
        where = run.path(config.eval.folder)
        finished = evaluation.solve(planned, params, where)
        done = [this.arrays() for this in finished]
        evaluation.write_report(planned, done, where, origin, command)
    chosen, scale = config.eval.solvers[-1], scan.facts["scale"]
    real = np.concatenate([arrays["example_id"] for arrays in done]) != PADDING_ID

    every = sorted([*scan.facts["places"], *scan.facts["empty"]])
    places = [every.index(place) for place in scan.facts["places"]]
    numbers = np.asarray(raw.header.get("slices", np.arange(len(raw.kspace))))[every].tolist()

    def joined(what: str) -> np.ndarray:
        """Of all slices that were asked for: 0 where one holds nothing, so that a volume has no hole."""
        found = np.concatenate([arrays[f"{chosen}/{what}"] for arrays in done])[real] * np.float32(scale)
        whole = np.zeros((len(every), *found.shape[1:]), found.dtype)
        whole[places] = found
        return whole

    std = joined("std") if f"{chosen}/std" in done[0] else None
    pixel_mm = tuple(scan.facts["pixel_mm"]) if "pixel_mm" in scan.facts else None
    placement = placement_of(raw.header, every)
    return Volume(name, joined("mean"), std, pixel_mm, raw.header, numbers, scan.facts["aspect"], placement)


def _plan(config: ConfigDict, scan: Scan, name: str) -> evaluation.Plan:
    """The evaluation of every slice of a prepared scan."""
    experiment = Experiment.for_task(config)
    solvers = {solver: get_solver(config, experiment, solver) for solver in config.eval.solvers}
    measures, absent = get_metrics(config)
    info = {
        "scan": name,
        "settings": {"noise_std": scan.facts["noise_std"]},
        "acceleration": {"effective": round(1 / scan.facts["kept"], 2)},
        "volumes": {name: {key: scan.facts[key] for key in ("aspect", "pixel_mm") if key in scan.facts}},
        "notes": [f"{name}: {'; '.join(scan.facts['steps'])}; noise from the {scan.facts['noise_from']}."],
        "content": hashlib.sha256(scan.y.tobytes() + scan.maps.tobytes()).hexdigest(),
    }
    examples = list(batches(scan, name, config.eval.batch_size))
    return evaluation.Plan(experiment, solvers, measures, absent, examples, info)


def _source(raw: RawVolume, name: str) -> dict[str, str]:
    """What tells a raw file from another: the name of the scan and the SHA-256 of its k-space."""
    return {"scan": name, "kspace": hashlib.sha256(raw.kspace.ravel().data).hexdigest()}
