"""What the settings of `config.em` must be, by themselves and together with others."""

import math

import jax
from ml_collections import ConfigDict

from msm.infra.values import Rule, choice, flag, integer, name, number, registered, several, text

SOLVER = name(registered("solvers.registry", "SOLVERS", "solvers"))

EM: dict[str, Rule] = {
    "steps": integer(1),
    "restart": flag(),
    "hide": number(0, below=1),
    "start": choice("wavelet", "prior"),
    "checkpoint": text(empty=True),
    "solver": SOLVER,
    "num_samples": integer(1),
    "num_levels": integer(1),
    "start_sigma": number(above=0),
    "conditional": choice("mean", "draw"),
    "batch_size": integer(1),
    "augment": several(name(registered("operators.image_augment", "IMAGE_AUGMENTATIONS"))),
    "judge": SOLVER,
    "split": choice("train", "validation", "test"),
    "max_examples": integer(0),
}

PATHS = ("loss.name", "loss.redraw", "training.num_steps", "transform.name", *(f"em.{key}" for key in EM))

CHANGES = {  # of an image, by transform; else mirror
    "multicoil_fourier": ("flip", "shift", "phase", "warp", "contrast"),
    "real_fourier": ("flip", "shift"),
}


def rounds_fit(c: ConfigDict) -> str | None:
    """What keeps losses 'em' and 'fill_in' from running, or None; of no other loss."""
    if c.loss.name not in ("em", "fill_in"):
        return None
    em, devices = c.em, jax.device_count()
    if c.loss.redraw:
        return f"loss.redraw is True: loss.name {c.loss.name!r} learns from one mask per acquisition; set it to False"
    if em.hide and c.loss.name == "em":
        return f"em.hide is {em.hide}: only loss.name 'fill_in' judges what completions were not shown; set it to 0"
    if c.training.num_steps % em.steps:
        whole = math.ceil(c.training.num_steps / em.steps) * em.steps
        return (
            f"training.num_steps is {c.training.num_steps}: it must be a whole number of rounds of em.steps "
            f"({em.steps}), e.g. {whole}"
        )
    if em.start == "prior" and not em.checkpoint:
        return "em.start is 'prior': it needs em.checkpoint, the workdir of a trained one; or take 'wavelet'"
    valid = CHANGES.get(c.transform.name, ("mirror",))
    bad = ", ".join(step for step in em.augment if step not in valid)
    if bad and c.loss.name == "em":
        return f"em.augment has {bad}: images of {c.transform.name!r} can only be changed by {', '.join(valid)}"
    if em.batch_size % devices:
        up = math.ceil(em.batch_size / devices) * devices
        return f"em.batch_size is {em.batch_size}: it must be a multiple of the {devices} devices, e.g. {up}"
    return None
