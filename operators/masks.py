"""Distributions p(S) of sampling masks: draws, inclusion probabilities and sequences that seek coverage.

A mask is a boolean array; True marks what is measured. Shapes follow the measurement without its batch axis: (1,1,W)
for columns of multi-coil k-space, (H,W,1) for images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp

from registry import Registry


class MaskDistribution(Protocol):
    """p(S) for one measurement shape."""

    def sample(self, key: jax.Array, avoid: jax.Array | None = None) -> jax.Array:
        """One mask. `avoid` (bool, shape of a mask) asks to put the same number of entries outside it if possible."""
        ...

    def inclusion_probability(self) -> jax.Array:
        """P(j in S), float32, shape of a mask; exact."""
        ...


MASKS: Registry[Callable] = Registry("mask distribution")


def get_masks(config, density: float = 0.0) -> MaskDistribution:
    """Returns p(S) of `config.masks` at `config.data.image_size`.

    `density` > 0 asks for masks of that expected density instead (sampling masks need not follow p(S) of training);
    1 keeps everything. Raises UserError for an unknown name.
    """
    return MASKS[config.masks.name](config.masks, config.data.image_size, density)


def centre_lines(width: int, acs_lines: int) -> jax.Array:
    """(W,) bool: the `acs_lines` central columns, always measured (auto-calibration signal)."""
    start = width // 2 - acs_lines // 2
    columns = jnp.arange(width)
    return (columns >= start) & (columns < start + acs_lines)


def _keep_probability(width: int, acs_lines: int, nominal: float, density: float) -> float:
    """Probability of a line outside the ACS: `nominal`, or what gives the expected `density` over all lines."""
    if not density:
        return nominal
    return min(1.0, max(0.0, (density * width - acs_lines) / max(1, width - acs_lines)))


@dataclass(frozen=True)
class RandomCartesian:
    """Columns of k-space (method.md section 1): ACS always, every other with probability `keep`, independently."""

    width: int
    acs_lines: int
    keep: float

    def sample(self, key, avoid=None):
        # The number of lines is binomial as if drawn one by one; given the number, the lines with the smallest scores
        # are kept. Scores are uniform, so that this is the independent draw; `avoid` only pushes lines to the end.
        number_key, score_key = jax.random.split(key)
        acs = centre_lines(self.width, self.acs_lines)
        outside = jnp.where(acs, 0.0, self.keep)
        number = jnp.sum(jax.random.uniform(number_key, (self.width,)) < outside)
        score = jax.random.uniform(score_key, (self.width,)) + jnp.where(acs, jnp.inf, 0.0)
        if avoid is not None:
            score = score + jnp.where(avoid.reshape(self.width), 2.0, 0.0)
        rank = jnp.argsort(jnp.argsort(score))
        return ((rank < number) | acs).reshape(1, 1, self.width)

    def inclusion_probability(self):
        acs = centre_lines(self.width, self.acs_lines)
        return jnp.where(acs, 1.0, self.keep).astype(jnp.float32).reshape(1, 1, self.width)


@MASKS.register("cartesian_random")
def get_random_cartesian(masks, size: int, density: float = 0.0) -> RandomCartesian:
    """Random columns at nominal acceleration R: keep = 1/R outside the ACS."""
    keep = _keep_probability(size, masks.acs_lines, 1.0 / masks.acceleration, density)
    return RandomCartesian(size, masks.acs_lines, keep)


@dataclass(frozen=True)
class EquispacedCartesian:
    """Every `step`-th column from a random offset, and the ACS. `step` may be fractional (columns are rounded down)."""

    width: int
    acs_lines: int
    step: float

    def _combs(self) -> jax.Array:
        """(offsets, W) bool, one comb per integer offset below `step`."""
        offsets = max(1, round(self.step))
        grid = jnp.arange(self.width)
        combs = []
        for offset in range(offsets):
            count = int((self.width - offset - 1) // self.step) + 1
            columns = (offset + self.step * jnp.arange(count)).astype(jnp.int32)
            combs.append(jnp.isin(grid, columns))
        return jnp.stack(combs) | centre_lines(self.width, self.acs_lines)

    def sample(self, key, avoid=None):
        combs = self._combs()
        score = jax.random.uniform(key, (combs.shape[0],))
        if avoid is not None:  # the comb with the most lines that are not covered yet
            score = score + jnp.sum(combs & ~avoid.reshape(self.width), axis=1)
        return combs[jnp.argmax(score)].reshape(1, 1, self.width)

    def inclusion_probability(self):
        return jnp.mean(self._combs(), axis=0, dtype=jnp.float32).reshape(1, 1, self.width)


@MASKS.register("cartesian_equispaced")
def get_equispaced_cartesian(masks, size: int, density: float = 0.0) -> EquispacedCartesian:
    """Equispaced columns at nominal acceleration R."""
    keep = _keep_probability(size, masks.acs_lines, 1.0 / masks.acceleration, density)
    return EquispacedCartesian(size, masks.acs_lines, 1.0 / keep if keep > 1 / size else float(size))


@dataclass(frozen=True)
class RandomBoxes:
    """Images: a grid x grid tiling of square blocks, `drop` of them missing, circularly shifted by a random offset."""

    size: int
    grid: int
    drop: int

    def sample(self, key, avoid=None):
        block_key, shift_key = jax.random.split(key)
        block = self.size // self.grid
        shift = jax.random.randint(shift_key, (2,), 0, block)
        score = jax.random.uniform(block_key, (self.grid, self.grid))
        if avoid is not None:  # keep the blocks with the least covered area
            covered = jnp.roll(avoid.reshape(self.size, self.size), -shift, (0, 1))
            score = score - 2.0 * self.size**2 * covered.reshape(self.grid, block, self.grid, block).mean((1, 3))
        rank = jnp.argsort(jnp.argsort(score.ravel())).reshape(self.grid, self.grid)
        kept = jnp.repeat(jnp.repeat(rank >= self.drop, block, 0), block, 1)
        return jnp.roll(kept, shift, (0, 1))[..., None]

    def inclusion_probability(self):
        # Every block is dropped with the same probability, so every pixel is, whatever the shift.
        return jnp.full((self.size, self.size, 1), 1.0 - self.drop / self.grid**2, jnp.float32)


@MASKS.register("random_boxes")
def get_random_boxes(masks, size: int, density: float = 0.0) -> RandomBoxes:
    """Random boxes of `masks.grid`^2 blocks with `masks.drop` of them missing (4 and 6 in the paper)."""
    drop = round((1 - density) * masks.grid**2) if density else masks.drop
    return RandomBoxes(size, masks.grid, drop)


def mask_sequence(masks: MaskDistribution, key: jax.Array, number: int, order: str, covered: jax.Array):
    """Draws `number` masks.

    Args:
      masks: p(S).
      key: random key.
      number: how many.
      order: 'iid' draws each from p(S); 'complement' makes each draw favour what is not covered yet, and starts
        again once everything is covered.
      covered: bool, shape of a mask: what earlier draws have covered ('complement' carries it from level to level).

    Returns:
      (masks (number, ...) bool, covered bool).
    """
    if order == "iid":
        return jax.vmap(masks.sample)(jax.random.split(key, number)), covered

    def draw(covered, key):
        mask = masks.sample(key, avoid=covered)
        covered = covered | mask
        return jnp.where(jnp.all(covered), jnp.zeros_like(covered), covered), mask

    covered, drawn = jax.lax.scan(draw, covered, jax.random.split(key, number))
    return drawn, covered
