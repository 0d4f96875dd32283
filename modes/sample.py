"""Drawing images from the prior in rounds that are never repeated, and judging them: distances and copies.

Images are keyed by their number alone, so batch size, devices and interruptions do not change them. What is held in
memory is one round and, of each image, its features.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from msm import datasets
from msm.configs.rules.settings import DRAWING  # what drawn images depend on; the rest of config.sampling says how many
from msm.evaluation import distances as frechet
from msm.evaluation import features, memorisation
from msm.evaluation.extractor import get_extractor, load_digest, load_features
from msm.experiment import Experiment
from msm.infra import sharding
from msm.infra.atomic import atomic_write_bytes
from msm.infra.errors import UserError
from msm.infra.progress import Progress
from msm.infra.rounds import Round, join, run_rounds, stamp
from msm.operators.measurement import PADDING_ID, Measurement
from msm.operators.shape import image_size, told
from msm.operators.transform import get_transform
from msm.reports import figures
from msm.reports import samples_page as sample_report
from msm.reports.evaluation_page import write_metrics_csv, write_summary
from msm.sampling import get_sampling_fn
from msm.solvers.registry import SolveFn

GRID_IMAGES = 64
SHOWN_PAIRS = 8


@dataclass(frozen=True)
class Judge:
    """What drawn images are compared with.

    Attributes:
      extract: images (N,...) -> features (N,D).
      drawn: features of the drawn images where they were computed elsewhere, else None.
      digest: of the images that `drawn` is of, '' without it.
      reference: features of the reference images where they were computed elsewhere, else None.
      held_out: images that were never trained on, None if the run has none.
      others: further held-out images, of the other split: how far apart real images of two splits are.
    """

    extract: Callable[[np.ndarray], np.ndarray]
    drawn: np.ndarray | None
    digest: str
    reference: np.ndarray | None
    held_out: datasets.References | None
    others: datasets.References | None


def get_judge(config) -> Judge:
    """Opens references and features. Raises UserError for what is missing or does not fit, before anything is drawn."""
    settings = config.sampling
    drawn = load_features(settings.features, "sampling.features") if settings.features.endswith(".npz") else None
    path = settings.reference_features
    reference = load_features(path, "sampling.reference_features") if path else None
    if drawn is not None and len(drawn) != settings.num_images:
        raise UserError(
            f"sampling.features {settings.features!r} holds {len(drawn)} images, sampling.num_images is "
            f"{settings.num_images}: make them equal"
        )
    digest = load_digest(settings.features, "sampling.features") if drawn is not None else ""
    extract = get_extractor("small" if drawn is not None else settings.features)
    transform, size = get_transform(config), image_size(config)
    measured = (*size, transform.channels) if config.data.num_coils == 0 else (1, *size)
    shape = transform.image_shape((1, *measured))
    width = extract(np.zeros(shape, transform.dtype)).shape[1] if drawn is None else drawn.shape[1]
    if reference is not None and reference.shape[1:] != (width,):
        raise UserError(
            f"sampling.reference_features {path!r} have shape {reference.shape}, sampling.features gives {width} "
            "features: use one extractor"
        )
    split = settings.reference_split
    if split == "none":
        return Judge(extract, drawn, digest, reference, None, None)
    known = datasets.dataset_info(config)["references"]["ids"]
    others = [
        datasets.open_references(config, name) for name in ("validation", "test") if name in known and name != split
    ]
    held_out = datasets.open_references(config, split)
    return Judge(extract, drawn, digest, reference, held_out, others[0] if others else None)


def spans_of(config: ConfigDict) -> list[tuple[int, int]]:
    """(start, stop) of the numbers of the images of each round."""
    total, size = config.sampling.num_images, config.sampling.batch_size
    return [(start, min(start + size, total)) for start in range(0, total, size)]


def stamps_of(config: ConfigDict, params: Any, acquisition_count: int) -> list[str]:
    """What the images of each round depend on."""
    sampler = {name: config.sampling[name] for name in DRAWING}
    info = datasets.dataset_info(config)
    return [
        stamp(
            config, params, info, ("denoiser", "schedule", "transform", "model", "masks"), sampler=sampler,
            acquisition=config.data.acquisition, acquisition_count=acquisition_count, span=span,
        )
        for span in spans_of(config)
    ]  # fmt: skip


def get_draw_fn(experiment: Experiment) -> SolveFn:
    """Returns draw(key, params, measurement, hyper) -> (1,B,...): images numbered by example_id, seen with its coils.

    It has a solver's arguments so that devices share it alike; of the measurement only shapes, ids and maps count.
    """
    sampler = get_sampling_fn(experiment.config, experiment.schedule, experiment.transform, experiment.denoise)

    def draw_batch(key, params, measurement: Measurement, hyper):
        del hyper
        shape = measurement.maps.shape if measurement.maps is not None else measurement.y.shape
        return sampler(key, params, measurement.example_id, measurement.maps, shape)[None]

    return draw_batch


def draw(experiment: Experiment, params: Any, acquisitions, folder: Path) -> list[Round]:
    """Draws every round that is not there yet; image n is seen with the coils of training acquisition n modulo theirs.

    A round's file holds 'images' (N,...), 'example_id' (N,) their numbers and 'acquisition_id' (N,) whose coils.
    """
    config = experiment.config
    runner = sharding.data_parallel_solve(get_draw_fn(experiment), experiment.mesh)
    key = sharding.replicate(jax.random.key(config.seed), experiment.mesh)
    spans, size = spans_of(config), config.sampling.batch_size

    def compute(number: int) -> dict[str, np.ndarray]:
        start, stop = spans[number]
        ids = np.arange(start, start + size)  # the last round is drawn whole, and cut
        mine = sharding.local_share(ids)
        batch = acquisitions.batch(mine % len(acquisitions)).replace(example_id=mine.astype(np.int32))
        images = runner(key, params, sharding.shard_batch(batch, experiment.mesh), {})
        images = sharding.gather_rows(sharding.local_rows(images, axis=1)[0])
        coils = acquisitions.ids[ids % len(acquisitions)]
        arrays = {"images": images, "example_id": ids.astype(np.int32), "acquisition_id": coils}
        return {name: value[: stop - start] for name, value in arrays.items()}

    return run_rounds(folder, stamps_of(config, params, len(acquisitions)), compute, "sample")


def report(
    experiment: Experiment, acquisitions, judge: Judge, planned: list[Round], folder: Path, origin, command: str
) -> dict:
    """Joins the rounds, judges the images and writes everything; returns the summary (empty but on process 0).

    `origin`: of the parameters, see `opening.load_params`.
    """
    config = experiment.config
    first = jax.process_index() == 0
    start, drawn_features = np.zeros((0,)), np.zeros((0, 0))
    if first:
        start, drawn_features = _pass_over(config, judge, planned, folder, origin["training step"])
    rows, pairs = _check_copies(experiment, acquisitions, judge, start)
    if not first:
        return {}
    summary = {
        "run": _facts(config, origin, command, judge),
        "distances": _distances(judge, drawn_features, config.sampling.batch_size),
        "memorisation": memorisation.summarize(rows),
        "definitions": _definitions(config),
    }
    write_summary(folder / "summary.json", summary)
    if rows:
        write_metrics_csv(folder / "memorisation.csv", rows)
    page = sample_report.write_report(folder, summary, rows, pairs)
    logging.info("%s", sample_report.one_line(summary))
    logging.info("report: %s", page)
    return summary


def _pass_over(config, judge: Judge, planned: list[Round], folder: Path, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Writes images.npz and grid.png; returns the first images and the features of all.

    Raises UserError if the features that were computed elsewhere are of other images.
    """
    settings = config.sampling
    wanted = max(GRID_IMAGES, settings.check_images)
    first, found = [], []

    def parts() -> Iterator[np.ndarray]:
        for this in planned:
            arrays = this.arrays()
            images = arrays["images"]
            first.append(images[: max(0, wanted - int(arrays["example_id"][0]))])
            if judge.drawn is None:
                found.append(judge.extract(images))
            yield images

    head = planned[0].arrays()
    shape = (settings.num_images, *head["images"].shape[1:])
    small = {"step": np.array(step), "seed": np.array(config.seed)}
    digest = join(folder / "images.npz", "images", parts(), shape, head["images"].dtype, **small)
    if judge.drawn is not None and digest != judge.digest:
        raise UserError(
            f"sampling.features {settings.features!r} is of other images: compute it again of {folder / 'images.npz'}, "
            "whose 'digest' it must hold"
        )
    start = np.concatenate(first)
    atomic_write_bytes(folder / "grid.png", figures.encode_png(figures.image_grid(start[:GRID_IMAGES])))
    return start, np.concatenate(found) if judge.drawn is None else judge.drawn


def _distances(judge: Judge, drawn: np.ndarray, batch: int) -> dict[str, Any]:
    """`frechet.compare` with the reference features of the file or the split; {} without either.

    Where the features come from a split, those of the other held-out split are compared with them as well.
    """

    def features_of(images: datasets.References) -> np.ndarray:
        spans = [range(start, min(start + batch, len(images))) for start in range(0, len(images), batch)]
        return np.concatenate([judge.extract(images.batch(span)) for span in spans])

    reference, others = judge.reference, None
    if reference is None and judge.held_out is not None:
        reference = features_of(judge.held_out)
        others = features_of(judge.others) if judge.others is not None and len(judge.others) > 1 else None
    if reference is None or len(drawn) < 2:
        return {}
    found = frechet.compare(drawn, reference, others)
    for warning in found["warnings"]:
        logging.warning("%s", warning)
    return found


def _check_copies(
    experiment: Experiment, acquisitions, judge: Judge, start: np.ndarray
) -> tuple[list[dict], np.ndarray | None]:
    """Distances of drawn and held-out images to every training acquisition: rows, and pictures of the nearest pairs.

    All processes and devices share the acquisitions; only process 0 needs to have the images, reads those held out, and
    gets the pictures.
    """
    config, transform, size = experiment.config, experiment.transform, image_size(experiment.config)
    first, limit = jax.process_index() == 0, min(config.sampling.check_images, config.sampling.num_images)
    if not limit:
        return [], None
    places = np.zeros(0, int)
    if judge.held_out is not None:
        count = min(config.sampling.check_images, len(judge.held_out))
        places = np.unique(np.rint(np.linspace(0, len(judge.held_out) - 1, count)).astype(int))
    measured = (*size, transform.channels) if config.data.num_coils == 0 else (1, *size)
    images = np.zeros(transform.image_shape((limit + len(places), *measured)), transform.dtype)
    if first:
        images[:limit] = start[:limit]
        if judge.held_out is not None:
            images[limit:] = judge.held_out.batch(places)
    images = sharding.from_first(images)
    values, names = _nearest(experiment, acquisitions, images)
    usual = float(np.median(values[limit:, 0])) if len(places) else float("nan")
    rows = memorisation.rows_of("drawn", np.arange(limit), values[:limit], names[:limit], usual)
    if judge.held_out is not None:
        rows += memorisation.rows_of("held-out", judge.held_out.ids[places], values[limit:], names[limit:], usual)
    if not first:
        return rows, None
    shown = np.argsort(values[:limit, 0])[:SHOWN_PAIRS]
    nearest = acquisitions.batch(np.searchsorted(acquisitions.ids, names[shown, 0]))
    zero_filled = np.asarray(transform.adjoint(jnp.where(nearest.mask, nearest.y, 0), nearest.maps))
    return rows, np.stack([images[shown], zero_filled])


def _nearest(experiment: Experiment, acquisitions, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two nearest training acquisitions of each image: distances (K,2) and ids (K,2)."""
    config, mesh = experiment.config, experiment.mesh
    distances = memorisation.get_distance_fn(config, experiment.transform)

    def share(key, images, measurement, hyper):
        del key, hyper
        return distances(images, measurement)

    runner = sharding.data_parallel_solve(share, mesh)
    key, images = sharding.replicate((jax.random.key(0), images), mesh)
    size, total, best = config.sampling.batch_size, len(acquisitions), None
    with Progress(-(-total // size), 0, "compare", unit="batch") as progress:
        for count, start in enumerate(range(0, total, size), start=1):
            places = np.arange(start, start + size)
            ids = np.where(places < total, acquisitions.ids[places % total], PADDING_ID).astype(np.int32)
            mine, named = sharding.local_share((places % total, ids))
            batch = sharding.shard_batch(replace(acquisitions.batch(mine), example_id=named), mesh)
            found = sharding.local_rows(runner(key, images, batch, {}), axis=1)
            best = memorisation.nearest_two(best, sharding.gather_rows(found.T).T, ids)
            progress.update(count)
    assert best is not None  # a store without acquisitions cannot be opened
    return best


def _facts(config, origin: dict[str, Any], command: str, judge: Judge) -> dict[str, Any]:
    settings, info = config.sampling, datasets.dataset_info(config)
    held_out = f"{len(judge.held_out)} of split {settings.reference_split}" if judge.held_out is not None else "none"
    return {
        "title": "Images drawn from the prior",
        "notes": info.get("notes", []),
        "command": command,
        **origin,
        "images": settings.num_images,
        "kind of images": "MRI" if config.data.num_coils else "colour",
        "image size": told(config.data.image_size),
        "coil maps": f"of the {info['counts']['train']} training acquisitions in turn"
        if config.data.num_coils
        else "none",
        "sampler": {name: settings[name] for name in DRAWING},
        "seed": config.seed,
        "features": settings.features,
        "reference images": settings.reference_features or held_out,
        "held-out images": held_out,
        "store": config.data.dir,
    }


def _definitions(config) -> dict[str, str]:
    told = {"features": features.DEFINITION} if config.sampling.features == "small" else {}
    between = (
        "The same distances of n images of the other held-out split (validation or test), or all of them if those are "
        "fewer, to n reference images: how far apart real images are that were not chosen to be alike, e.g. of two "
        "people."
    )
    return told | frechet.DEFINITIONS | {"between splits": between} | memorisation.DEFINITIONS
