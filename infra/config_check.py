"""Checks a whole config before anything is built: what each setting must be, and which settings must fit each other."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from configs.default import get_config
from infra.config_rules import Rule, choice, flag, folder_inside, integer, name, number, registered, several, text
from infra.errors import UserError
from infra.tune_rules import TUNE
from registry import nearest

RESERVED_FOLDERS = ("checkpoints", "checkpoints-meta", "tensorboard", "samples", "tune")

SOLVER = name(registered("solvers.registry", "SOLVERS", "solvers"))

SAMPLER = {  # shared by config.sampling and config.solver
    "num_levels": integer(1),
    "w": integer(1),
    "mask_keep": number(0, 1),
    "mask_order": choice("iid", "complement"),
    "reinject": flag(),
    "weight": choice("count", "population"),
    "step": choice("ddim", "renoise"),
    "eta": number(0, 1),
}

SETTINGS: dict[str, Rule] = {
    "seed": integer(0, 2**32 - 1),
    # data
    "data.dir": text(),
    "data.image_size": integer(1),
    "data.num_coils": integer(0),
    "data.acquisition": choice("undersampled", "full"),
    "data.augment": several(name(registered("operators.augment", "AUGMENTATIONS"))),
    # operators
    "transform.name": name(registered("operators.transform", "TRANSFORMS")),
    "masks.name": name(registered("operators.masks", "MASKS")),
    "masks.acceleration": number(1),
    "masks.acs_lines": integer(0),
    "masks.grid": integer(1),
    "masks.drop": integer(0),
    # network
    "model.name": name(registered("models.registry", "MODELS", "models")),
    "model.num_channels": integer(2),
    "model.channel_mult": several(integer(1), at_least=1, repeats=True),
    "model.num_res_blocks": integer(1),
    "model.attention_resolutions": several(integer(1)),
    "model.num_heads": integer(1),
    "model.num_head_channels": integer(1, other=-1),
    "model.patch_size": integer(1),
    "model.dtype": choice("float32", "bfloat16"),
    "model.remat": flag(),
    # denoiser and schedule
    "denoiser.parametrization": name(registered("models.denoiser", "PARAMETRIZATIONS")),
    "denoiser.sandwich": name(registered("models.denoiser", "SANDWICHES")),
    "denoiser.cg_steps": integer(1),
    "denoiser.sigma_data": number(above=0),
    "schedule.name": name(registered("sde_lib", "SCHEDULES")),
    "schedule.sigma_min": number(above=0),
    "schedule.sigma_max": number(above=0),
    "schedule.rho": number(above=0),
    "schedule.log_sigma_mean": number(),
    "schedule.log_sigma_std": number(above=0),
    "schedule.train_stride": integer(1, 1000),
    # training
    "loss.name": name(registered("losses", "LOSSES")),
    "loss.reduction": choice("observed", "all"),
    "loss.min_keep": number(above=0, high=1),
    "loss.sure_weight": number(0),
    "loss.sure_tau": number(above=0),
    "loss.sure_count": choice("observed", "published"),
    "loss.redraw": flag(),
    "loss.redraw_noise_std": number(0),
    "optim.learning_rate": number(above=0),
    "optim.warmup_steps": integer(0),
    "optim.decay": choice("cosine", "constant"),
    "optim.weight_decay": number(0),
    "optim.grad_clip": number(0),
    "optim.ema_rate": number(0, below=1),
    "optim.accumulate": integer(1),
    "training.batch_size": integer(1),
    "training.num_steps": integer(1),
    "training.log_every": integer(1),
    "training.checkpoint_every": integer(1),
    "training.resume_every": integer(1),
    "training.sample_every": integer(1),
    "training.max_skipped": integer(1),
    "training.picture_solver": SOLVER,
    # sampling and reconstruction
    **{f"sampling.{key}": rule for key, rule in SAMPLER.items()},
    "sampling.num_images": integer(1),
    "sampling.batch_size": integer(1),
    "sampling.folder": folder_inside(()),
    "sampling.features": text(),
    "sampling.reference_split": choice("validation", "test", "none"),
    "sampling.reference_features": text(empty=True),
    "sampling.check_images": integer(0),
    **{f"solver.{key}": rule for key, rule in SAMPLER.items()},
    "solver.start_sigma": number(above=0),
    "solver.consistency": name(registered("solvers.msm", "CONSISTENCY")),
    "solver.cg_steps": integer(1),
    "solver.damping": number(0),
    "solver.gamma": number(0),
    **{f"baselines.{name}": number(0) for name in ("ridge", "wavelet", "tv")},
    # evaluation
    "task.name": name(registered("operators.tasks", "TASKS")),
    "task.seed": integer(0, 2**32 - 1),
    "task.noise_std": number(0),
    "task.acceleration": number(1),
    "task.acs_lines": integer(0),
    "task.factor": integer(1),
    "task.box_size": integer(1),
    "task.keep": number(above=0, high=1),
    "task.sigma": number(above=0),
    "task.length": number(above=0),
    "task.angle": number(),
    "eval.split": choice("train", "validation", "test"),
    "eval.acquisition": choice("undersampled", "full"),
    "eval.solvers": several(SOLVER, at_least=1),
    "eval.num_samples": integer(1),
    "eval.batch_size": integer(1),
    "eval.max_examples": integer(0),
    "eval.metrics": several(name(registered("metrics", "SETS")), at_least=1),
    "eval.lpips_network": choice("alexnet", "vgg16"),
    "eval.lpips_weights": text(empty=True),
    "eval.folder": folder_inside(RESERVED_FOLDERS),
    "eval.checkpoint": text(empty=True),
    "eval.tuned": text(empty=True),
    **{f"tune.{key}": rule for key, rule in TUNE.items()},
}

OPTIONAL = {"masks.grid", "masks.drop"}  # only masks of images have them

TASKS_OF_ENTRIES = ("acquired", "cs_mri", "box_inpainting", "random_inpainting")  # what they measure is a part of T x

SYMMETRIES = {"mri": ("flip", "shift", "phase"), "images": ("mirror",)}


def _is_mri(c: ConfigDict) -> bool:
    return c.transform.name == "multicoil_fourier"


@dataclasses.dataclass(frozen=True)
class Combination:
    """Settings that must fit each other: looked at only where each of `paths` is right by itself."""

    paths: tuple[str, ...]
    problem: Callable[[ConfigDict], str | None]


COMBINATIONS: list[Combination] = []


def _must_fit(*paths: str) -> Callable[[Callable], Callable]:
    """Decorator for a check of several settings, which returns what is wrong with them, or None."""

    def add(check_fit: Callable[[ConfigDict], str | None]) -> Callable:
        COMBINATIONS.append(Combination(paths, check_fit))
        return check_fit

    return add


@_must_fit("schedule.sigma_min", "schedule.sigma_max")
def _noise_levels_ascend(c: ConfigDict) -> str | None:
    low, high = c.schedule.sigma_min, c.schedule.sigma_max
    return None if low < high else f"schedule.sigma_min is {low}: it must be less than schedule.sigma_max ({high})"


@_must_fit("schedule.name", "schedule.sigma_min", "solver.start_sigma")
def _start_is_noisier_than_the_end(c: ConfigDict) -> str | None:
    start, low = c.solver.start_sigma, c.schedule.sigma_min
    if c.schedule.name != "edm" or start > low:
        return None
    return f"solver.start_sigma is {start}: it must be more than schedule.sigma_min ({low})"


@_must_fit("masks.acs_lines", "data.image_size")
def _acs_inside_image(c: ConfigDict) -> str | None:
    if c.masks.acs_lines <= c.data.image_size:
        return None
    return f"masks.acs_lines is {c.masks.acs_lines}: it must be at most data.image_size ({c.data.image_size})"


@_must_fit("data.image_size", "model.patch_size", "model.channel_mult")
def _image_divides_into_levels(c: ConfigDict) -> str | None:
    unit = c.model.patch_size * 2 ** (len(c.model.channel_mult) - 1)
    if c.data.image_size % unit == 0:
        return None
    return (
        f"data.image_size is {c.data.image_size}: it must be a multiple of {unit} = model.patch_size * 2^(levels-1); "
        "change it, or use a smaller model.patch_size or fewer levels in model.channel_mult"
    )


@_must_fit(
    "data.image_size",
    "model.patch_size",
    "model.channel_mult",
    "model.num_channels",
    "model.attention_resolutions",
    "model.num_heads",
    "model.num_head_channels",
)
def _attention_divides_into_heads(c: ConfigDict) -> str | None:
    m = c.model
    used = {m.channel_mult[-1]}  # the block in the middle always has attention
    for level, mult in enumerate(m.channel_mult):
        if c.data.image_size // m.patch_size // 2**level in tuple(m.attention_resolutions):
            used.add(mult)
    key = "num_heads" if m.num_head_channels == -1 else "num_head_channels"
    bad = sorted(m.num_channels * mult for mult in used if m.num_channels * mult % m[key])
    if not bad:
        return None
    return f"model.{key} is {m[key]}: it must divide the {', '.join(map(str, bad))} channels of the attention blocks"


@_must_fit("transform.name", "data.num_coils")
def _coils_fit_transform(c: ConfigDict) -> str | None:
    if (c.data.num_coils > 0) == _is_mri(c):
        return None
    needed = "at least 1 (MRI)" if _is_mri(c) else "0 (images have no coils)"
    return f"data.num_coils is {c.data.num_coils}: transform.name {c.transform.name!r} needs {needed}"


@_must_fit("transform.name", "masks.name")
def _masks_fit_transform(c: ConfigDict) -> str | None:
    if c.masks.name.startswith("cartesian_") == _is_mri(c):
        return None
    needed = "cartesian_random or cartesian_equispaced" if _is_mri(c) else "random_boxes"
    return f"masks.name is {c.masks.name!r}: transform.name {c.transform.name!r} needs {needed}"


@_must_fit("transform.name", "data.augment")
def _symmetries_fit_transform(c: ConfigDict) -> str | None:
    valid = SYMMETRIES["mri" if _is_mri(c) else "images"]
    bad = ", ".join(step for step in c.data.augment if step not in valid)
    if not bad:
        return None
    return f"data.augment has {bad}: {c.transform.name!r} measurements have only the symmetries {', '.join(valid)}"


@_must_fit("loss.name", "loss.redraw", "data.acquisition")
def _loss_fits_data(c: ConfigDict) -> str | None:
    clean = [text for text, used in (("loss.name 'dsm'", c.loss.name == "dsm"), ("loss.redraw", c.loss.redraw)) if used]
    if len(clean) == 2:
        return "loss.redraw is True: loss.name 'dsm' has no masks to redraw; set it to False"
    if clean and c.data.acquisition != "full":
        return f"data.acquisition is {c.data.acquisition!r}: {clean[0]} needs 'full', clean data"
    return None


@_must_fit("loss.name", "loss.redraw", "loss.redraw_noise_std", "data.acquisition")
def _risk_needs_noise(c: ConfigDict) -> str | None:
    if c.loss.name != "msm_sure" or (c.loss.redraw_noise_std > 0 if c.loss.redraw else c.data.acquisition != "full"):
        return None
    mend = "set loss.redraw_noise_std" if c.loss.redraw else "take data.acquisition 'undersampled' or loss.name 'msm'"
    return f"loss.name is 'msm_sure': its data have no noise; {mend}"


@_must_fit("masks.name", "masks.grid", "masks.drop", "data.image_size")
def _boxes_tile_image(c: ConfigDict) -> str | None:
    if c.masks.name != "random_boxes":
        return None
    grid, drop = c.masks.get("grid"), c.masks.get("drop")
    if grid is None or drop is None:
        return "masks.name is 'random_boxes': it needs masks.grid (blocks per side) and masks.drop (blocks left out)"
    if c.data.image_size % grid:
        return f"masks.grid is {grid}: it must divide data.image_size ({c.data.image_size})"
    return None if drop < grid**2 else f"masks.drop is {drop}: it must be less than the {grid**2} blocks of masks.grid"


@_must_fit("task.name", "transform.name")
def _task_fits_transform(c: ConfigDict) -> str | None:
    if c.task.name == "acquired" or (c.task.name == "cs_mri") == _is_mri(c):
        return None
    needed = "cs_mri or acquired" if _is_mri(c) else "acquired or one of images"
    return f"task.name is {c.task.name!r}: transform.name {c.transform.name!r} needs {needed}"


@_must_fit("task.name", "task.acs_lines", "task.factor", "task.box_size", "task.length", "data.image_size")
def _task_fits_image(c: ConfigDict) -> str | None:
    task, size = c.task, c.data.image_size
    if task.name == "sr" and size % task.factor:
        return f"task.factor is {task.factor}: it must divide data.image_size ({size})"
    most = {"cs_mri": ("acs_lines", size), "box_inpainting": ("box_size", size - 1), "motion_blur": ("length", size)}
    key, limit = most.get(task.name, ("", 0))
    if not key or task[key] <= limit:
        return None
    return f"task.{key} is {task[key]}: it must be at most {limit} for a data.image_size of {size}"


@_must_fit("task.name", "solver.consistency")
def _consistency_fits_task(c: ConfigDict) -> str | None:
    if c.solver.consistency != "entries" or c.task.name in TASKS_OF_ENTRIES:
        return None
    return (
        f"solver.consistency is 'entries': task.name {c.task.name!r} measures no entries of the image; use "
        "pseudo_inverse or least_squares"
    )


def _enough_levels(section: str) -> None:
    @_must_fit("schedule.name", "schedule.train_stride", f"{section}.num_levels")
    def enough(c: ConfigDict) -> str | None:
        asked, levels = c[section].num_levels, math.ceil(1000 / c.schedule.train_stride)
        if c.schedule.name != "ddpm" or asked <= levels:
            return None
        return f"{section}.num_levels is {asked}: it must be at most {levels} = 1000 / schedule.train_stride"


for _section in ("sampling", "solver"):
    _enough_levels(_section)


@_must_fit("training.batch_size", "optim.accumulate")
def _training_batch_splits(c: ConfigDict) -> str | None:
    size, devices = c.training.batch_size, jax.device_count()
    share = devices * c.optim.accumulate
    if size % share == 0:
        return None
    return (
        f"training.batch_size is {size}: it must be a multiple of {share} = {devices} devices x optim.accumulate "
        f"{c.optim.accumulate}, e.g. {math.ceil(size / share) * share}"
    )


@_must_fit("eval.metrics")
def _metrics_hold_the_standard_ones(c: ConfigDict) -> str | None:
    if "standard" in c.eval.metrics:
        return None
    return "eval.metrics lacks 'standard': other sets are added to the standard one, never put in its place"


def _batch_splits(section: str) -> None:
    @_must_fit(f"{section}.batch_size")
    def splits(c: ConfigDict) -> str | None:
        size, devices = c[section].batch_size, jax.device_count()
        if size % devices == 0:
            return None
        up = math.ceil(size / devices) * devices
        return f"{section}.batch_size is {size}: it must be a multiple of the {devices} devices, e.g. {up}"


for _section in ("eval", "sampling", "tune"):
    _batch_splits(_section)


@_must_fit("sampling.features", "sampling.reference_features")
def _precomputed_features_are_a_pair(c: ConfigDict) -> str | None:
    if not c.sampling.features.endswith(".npz") or c.sampling.reference_features:
        return None
    return (
        f"sampling.features is {c.sampling.features!r}: precomputed features of the drawn images need "
        "sampling.reference_features, those of the reference images by the same extractor"
    )


def _flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value})
    return flat


def find_problems(config: ConfigDict) -> list[str]:
    """Returns every problem of a config, one line each; an empty list if it is sound."""
    values = _flat(config)
    problems = {}
    for path, rule in SETTINGS.items():
        if path in values:
            problems[path] = rule.problem(path, values[path])
        elif path not in OPTIONAL:
            problems[path] = f"{path} is missing: start the config from configs/default.py"
    known = {**SETTINGS, **_flat(get_config())}
    for path in sorted(values.keys() - known.keys()):
        problems[path] = f"{path} is not a setting{nearest(path, known)}; configs/default.py has all"
    wrong = {path for path, problem in problems.items() if problem}
    fits = [combination.problem(config) for combination in COMBINATIONS if not wrong.intersection(combination.paths)]
    return [problem for problem in (*problems.values(), *fits) if problem]


def check(config: ConfigDict) -> None:
    """Raises UserError that tells every problem of the config, one line each, before anything is built or compiled."""
    problems = find_problems(config)
    if problems:
        raise UserError("\n".join(problems))
