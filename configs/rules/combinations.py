"""Which settings of a config must fit each other."""

import dataclasses
import math
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from msm.configs.rules.em import PATHS, rounds_fit
from msm.models.levels import attention_levels, size_unit
from msm.operators.shape import image_size, told

TASKS_OF_ENTRIES = ("acquired", "cs_mri", "box_inpainting", "random_inpainting")  # what they measure is a part of T x

TASKS_OF_CT = ("sparse_ct", "mar", "sparse_mar")
UNSCALED = ("edm", "ve")  # schedules whose alpha is 1, between schedule.sigma_min and sigma_max
SYMMETRIES = {"multicoil_fourier": ("flip", "shift", "phase"), "real_fourier": ("flip", "shift")}  # else mirror

NETWORK_OF = {"ssdu": "ssdu", "a_dps": "ambient"}  # solvers that need the network of one loss
DIFFUSION = ("msm", "dps", "ddnm", "projection", "langevin_projection", "baseline", "langevin")


def _is_mri(c: ConfigDict) -> bool:
    return c.transform.name.endswith("_fourier")


@dataclasses.dataclass(frozen=True)
class Combination:
    """Settings that must fit each other: looked at only where each of `paths` is right by itself.

    `mode` is the only one that they matter to, '' where that is all.
    """

    paths: tuple[str, ...]
    problem: Callable[[ConfigDict], str | None]
    mode: str = ""


COMBINATIONS: list[Combination] = []


def _must_fit(*paths: str, mode: str = "") -> Callable[[Callable], Callable]:
    """Decorator for a check of several settings, which returns what is wrong with them, or None."""

    def add(check_fit: Callable[[ConfigDict], str | None]) -> Callable:
        COMBINATIONS.append(Combination(paths, check_fit, mode))
        return check_fit

    return add


@_must_fit("schedule.sigma_min", "schedule.sigma_max")
def _noise_levels_ascend(c: ConfigDict) -> str | None:
    low, high = c.schedule.sigma_min, c.schedule.sigma_max
    return None if low < high else f"schedule.sigma_min is {low}: it must be less than schedule.sigma_max ({high})"


@_must_fit("schedule.name", "schedule.sigma_min", "solver.start_sigma", "msm_fast.start_sigma")
def _start_is_noisier_than_the_end(c: ConfigDict) -> str | None:
    low = c.schedule.sigma_min
    if c.schedule.name not in UNSCALED or low >= c.schedule.sigma_max:
        return None
    for section in ("solver", "msm_fast"):
        if c[section].start_sigma <= low:
            return f"{section}.start_sigma is {c[section].start_sigma}: it must be more than schedule.sigma_min ({low})"
    return None


@_must_fit("solver.step", "solver.reinject")
def _there_is_noise_to_reinject(c: ConfigDict) -> str | None:
    if c.solver.step != "plug_and_play" or not c.solver.reinject:
        return None
    return "solver.reinject is True: solver.step 'plug_and_play' has no noise; set one of them otherwise"


@_must_fit("masks.acs_lines", "data.image_size")
def _acs_inside_image(c: ConfigDict) -> str | None:
    if c.masks.acs_lines <= image_size(c)[1]:
        return None
    return f"masks.acs_lines is {c.masks.acs_lines}: it must be at most data.image_size ({told(c.data.image_size)})"


@_must_fit("data.image_size", "model.patch_size", "model.channel_mult")
def _image_is_no_smaller_than_the_coarsest_level(c: ConfigDict) -> str | None:
    unit = size_unit(c.model.patch_size, len(c.model.channel_mult))
    if min(image_size(c)) >= unit:
        return None
    return (
        f"data.image_size is {told(c.data.image_size)}: it must be at least {unit} = model.patch_size * 2^(levels-1); "
        "change it, or use a smaller model.patch_size or fewer levels in model.channel_mult"
    )


@_must_fit(
    "model.name",
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
    if m.name != "adm":
        return None
    with_attention = {len(m.channel_mult) - 1, *attention_levels(m, image_size(c))}  # the block in the middle too
    used = {m.channel_mult[level] for level in with_attention}
    key = "num_heads" if m.num_head_channels == -1 else "num_head_channels"
    bad = sorted(m.num_channels * mult for mult in used if m.num_channels * mult % m[key])
    if not bad:
        return None
    return f"model.{key} is {m[key]}: it must divide the {', '.join(map(str, bad))} channels of the attention blocks"


@_must_fit("model.name", "model.ncsnpp.embedding", "denoiser.parametrization")
def _score_networks_are_told_the_noise_level(c: ConfigDict) -> str | None:
    told, asked = c.model.name == "ncsnpp" and c.model.ncsnpp.embedding == "fourier", c.denoiser.parametrization
    if told == (asked == "score"):
        return None
    network = f"{c.model.name!r}" + (
        f" with embedding {c.model.ncsnpp.embedding!r}" if c.model.name == "ncsnpp" else ""
    )
    needed = "'score', which tells it the noise level" if told else "eps or edm, which tell it the timestep"
    return f"denoiser.parametrization is {asked!r}: model.name {network} needs {needed}"


@_must_fit("denoiser.parametrization", "schedule.name")
def _scores_are_of_unscaled_images(c: ConfigDict) -> str | None:
    if c.denoiser.parametrization != "score" or c.schedule.name in UNSCALED:
        return None
    return f"schedule.name is {c.schedule.name!r}: denoiser.parametrization 'score' needs {' or '.join(UNSCALED)}"


@_must_fit(
    *(f"model.ncsnpp.{key}" for key in ("embedding", "fir", "progressive", "progressive_input", "scale_by_sigma"))
)
def _ncsnpp_branches_fit(c: ConfigDict) -> str | None:
    own = c.model.ncsnpp
    if own.scale_by_sigma and own.embedding != "fourier":
        return "model.ncsnpp.scale_by_sigma is True: only embedding 'fourier' is told the noise level; set it to False"
    if not own.fir and "residual" in (own.progressive, own.progressive_input):
        return "model.ncsnpp.fir is False: progressive or progressive_input 'residual' resample with the filter"
    return None


@_must_fit("schedule.beta_min", "schedule.beta_max")
def _betas_ascend(c: ConfigDict) -> str | None:
    low, high = c.schedule.beta_min, c.schedule.beta_max
    return None if low < high else f"schedule.beta_min is {low}: it must be less than schedule.beta_max ({high})"


@_must_fit("transform.name", "data.num_coils")
def _coils_fit_transform(c: ConfigDict) -> str | None:
    if (c.data.num_coils > 0) == _is_mri(c):
        return None
    needed = "at least 1 (MRI)" if _is_mri(c) else "0 (images have no coils)"
    return f"data.num_coils is {c.data.num_coils}: transform.name {c.transform.name!r} needs {needed}"


@_must_fit("transform.name", "masks.name", "task.name", "task.masks")
def _masks_fit_transform(c: ConfigDict) -> str | None:
    used = {"masks.name": c.masks.name, "task.masks": c.task.masks if c.task.name == "cs_mri" else ""}
    for path, name in used.items():
        if name and name.startswith("cartesian_") != _is_mri(c):
            needed = "cartesian_random or another of MRI" if _is_mri(c) else "random_boxes"
            return f"{path} is {name!r}: transform.name {c.transform.name!r} needs {needed}"
    return None


@_must_fit("transform.name", "data.augment")
def _symmetries_fit_transform(c: ConfigDict) -> str | None:
    valid = SYMMETRIES.get(c.transform.name, ("mirror",))
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


@_must_fit("loss.name", "loss.redraw", "loss.ambient_keep")
def _rivals_hide_acquired_entries(c: ConfigDict) -> str | None:
    if c.loss.name in ("ssdu", "ambient") and c.loss.redraw:
        return f"loss.redraw is True: loss.name {c.loss.name!r} learns from one mask per acquisition; set it to False"
    if c.loss.name == "ambient" and c.loss.ambient_keep == 1:
        return "loss.ambient_keep is 1: loss.name 'ambient' must hide some entries; take 0.8"
    return None


def _solvers_have_their_networks(where: str, mode: str) -> None:
    @_must_fit(where, "loss.name", mode=mode)
    def trained_for(c: ConfigDict) -> str | None:
        section, key = where.split(".")
        named = c[section][key]
        for solver in (named,) if isinstance(named, str) else named:
            loss = NETWORK_OF.get(solver, c.loss.name)
            if loss != c.loss.name:
                return f"{where} names {solver!r}: its network is trained by loss.name {loss!r}, not {c.loss.name!r}"
            if c.loss.name == "ssdu" and solver in DIFFUSION:
                return (
                    f"{where} names {solver!r}: loss.name 'ssdu' trains no denoiser of every noise level; take 'ssdu'"
                )
        return None


for _where, _mode in (("training.picture_solver", "train"), ("eval.solvers", "eval"), ("tune.solver", "tune")):
    _solvers_have_their_networks(_where, _mode)


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
    if any(size % grid for size in image_size(c)):
        return f"masks.grid is {grid}: it must divide data.image_size ({told(c.data.image_size)})"
    return None if drop < grid**2 else f"masks.drop is {drop}: it must be less than the {grid**2} blocks of masks.grid"


@_must_fit("task.name", "transform.name")
def _task_fits_transform(c: ConfigDict) -> str | None:
    task = c.task.name
    if _is_mri(c):
        fits, needed = task == "cs_mri", "cs_mri or acquired"
    elif c.transform.name == "grey":
        fits, needed = task not in ("cs_mri", "colorization"), "acquired or one of CT or grey images"
    else:
        fits, needed = task not in ("cs_mri", *TASKS_OF_CT), "acquired or one of images"
    if fits or task == "acquired":
        return None
    return f"task.name is {c.task.name!r}: transform.name {c.transform.name!r} needs {needed}"


@_must_fit("task.name", "task.acs_lines", "task.factor", "task.box_size", "task.length", "data.image_size")
def _task_fits_image(c: ConfigDict) -> str | None:
    task, size = c.task, min(image_size(c))
    if task.name == "sr" and any(n % task.factor for n in image_size(c)):
        return f"task.factor is {task.factor}: it must divide data.image_size ({told(c.data.image_size)})"
    if task.name in TASKS_OF_CT and max(image_size(c)) > size:
        return f"task.name is {task.name!r}: its field of view is square, data.image_size is {told(c.data.image_size)}"
    most = {"cs_mri": ("acs_lines", size), "box_inpainting": ("box_size", size - 1), "motion_blur": ("length", size)}
    key, limit = most.get(task.name, ("", 0))
    if not key or task[key] <= limit:
        return None
    return f"task.{key} is {task[key]}: it must be at most {limit} for a data.image_size of {told(c.data.image_size)}"


@_must_fit("task.name", "solver.consistency")
def _consistency_fits_task(c: ConfigDict) -> str | None:
    if c.solver.consistency != "entries" or c.task.name in TASKS_OF_ENTRIES:
        return None
    return (
        f"solver.consistency is 'entries': task.name {c.task.name!r} measures no entries of the image; use "
        "pseudo_inverse or least_squares"
    )


@_must_fit("task.name", "score_sde.consistency", "training.picture_solver")
def _fourier_slices_are_of_views(c: ConfigDict) -> str | None:
    if c.score_sde.consistency != "fourier_slice":
        return None
    if c.task.name not in TASKS_OF_CT:
        return f"score_sde.consistency is 'fourier_slice': task.name {c.task.name!r} measures no views"
    if c.training.picture_solver.endswith("projection"):
        return (
            f"training.picture_solver is {c.training.picture_solver!r}: pictures are of the store's acquisitions, for "
            "which score_sde.consistency 'fourier_slice' has no views; take langevin"
        )
    return None


def _enough_levels(section: str) -> None:
    @_must_fit("schedule.name", "schedule.train_stride", f"{section}.num_levels")
    def enough(c: ConfigDict) -> str | None:
        asked, levels = c[section].num_levels, math.ceil(1000 / c.schedule.train_stride)
        if c.schedule.name != "ddpm" or asked <= levels:
            return None
        return f"{section}.num_levels is {asked}: it must be at most {levels} = 1000 / schedule.train_stride"


for _section in ("sampling", "solver"):
    _enough_levels(_section)


@_must_fit("training.batch_size", "optim.accumulate", mode="train")
def _training_batch_splits(c: ConfigDict) -> str | None:
    size, devices = c.training.batch_size, jax.device_count()
    share = devices * c.optim.accumulate
    if size % share == 0:
        return None
    return (
        f"training.batch_size is {size}: it must be a multiple of {share} = {devices} device{'s' * (devices > 1)} x "
        f"optim.accumulate {c.optim.accumulate}, e.g. {math.ceil(size / share) * share}"
    )


_must_fit(*PATHS, mode="train")(rounds_fit)


@_must_fit("tune.objective", "tune.num_samples")
def _spread_needs_samples(c: ConfigDict) -> str | None:
    if c.tune.objective != "crps" or c.tune.num_samples > 1:
        return None
    return "tune.num_samples is 1: tune.objective 'crps' is of the spread of several samples; take 8"


@_must_fit("eval.metrics")
def _metrics_hold_the_standard_ones(c: ConfigDict) -> str | None:
    if "standard" in c.eval.metrics:
        return None
    return "eval.metrics lacks 'standard': other sets are added to the standard one, never put in its place"


def _batch_splits(section: str, mode: str) -> None:
    @_must_fit(f"{section}.batch_size", mode=mode)
    def splits(c: ConfigDict) -> str | None:
        size, devices = c[section].batch_size, jax.device_count()
        if size % devices == 0:
            return None
        up = math.ceil(size / devices) * devices
        return f"{section}.batch_size is {size}: it must be a multiple of the {devices} devices, e.g. {up}"


for _section, _mode in (("eval", "eval"), ("sampling", "sample"), ("tune", "tune")):
    _batch_splits(_section, _mode)


@_must_fit("sampling.features", "sampling.reference_features")
def _precomputed_features_are_a_pair(c: ConfigDict) -> str | None:
    if not c.sampling.features.endswith(".npz") or c.sampling.reference_features:
        return None
    return (
        f"sampling.features is {c.sampling.features!r}: precomputed features of the drawn images need "
        "sampling.reference_features, those of the reference images by the same extractor"
    )
