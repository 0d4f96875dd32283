"""Distributions p(S) of sampling masks: draws, inclusion probabilities and sequences that seek coverage.

A mask is a boolean array; True marks what is measured. Shapes follow the measurement without its batch axis: (1,1,W)
for columns of multi-coil k-space, (1,H,W) for its entries, (H,W,1) for images.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from msm.infra.registry import Registry
from msm.operators import poisson_disc
from msm.operators.shape import Size, rows_and_columns


class MaskDistribution(Protocol):
    """p(S) for one measurement shape."""

    def sample(self, key: jax.Array, avoid: jax.Array | None = None) -> jax.Array:
        """One mask. `avoid` (bool, shape of a mask) asks to put the same number of entries outside it if possible."""
        ...

    def inclusion_probability(self) -> jax.Array:
        """P(j in S), float32, shape of a mask; exact, but for Poisson discs."""
        ...


MASKS: Registry[Callable] = Registry("mask distribution")


def get_masks(config, density: float = 0.0) -> MaskDistribution:
    """Returns p(S) of `config.masks` at `config.data.image_size`.

    `density` > 0 asks for masks of that expected density instead (sampling masks need not follow p(S) of training);
    1 keeps everything. Raises UserError for an unknown name.
    """
    return MASKS[config.masks.name](config.masks, config.data.image_size, density)


def get_always_fn(config, masks: MaskDistribution) -> Callable[[tuple[int, ...]], jax.Array]:
    """Returns always(shape of y) -> bool: what every mask of p(S) keeps, shape of a mask.

    `masks` are of the config's size; k-space (B,C,H,W) of another has p(S) of its own.
    """
    own = masks.inclusion_probability() >= 1.0

    @functools.cache
    def of_size(rows: int, columns: int) -> jax.Array:
        with jax.ensure_compile_time_eval():
            other = MASKS[config.masks.name](config.masks, (rows, columns), 0.0)
            return other.inclusion_probability() >= 1.0

    def always(shape: tuple[int, ...]) -> jax.Array:
        rows, columns = shape[-2:]
        fits = own.shape[-1] in (1, columns) and own.shape[-2] in (1, rows)
        return own if fits or own.shape[-1] == 1 else of_size(rows, columns)

    return always


def centre_lines(width: int, acs_lines: int) -> np.ndarray:
    """(W,) bool: the `acs_lines` central columns, always measured (auto-calibration signal)."""
    start = width // 2 - acs_lines // 2
    columns = np.arange(width)
    return (columns >= start) & (columns < start + acs_lines)


def _keep_probability(width: int, masks, density: float) -> float:
    """Probability of a line outside the ACS: 1/R of `masks`, or what gives the expected `density` over all lines."""
    if not density:
        return 1.0 / masks.acceleration
    return min(1.0, max(0.0, (density * width - masks.acs_lines) / max(1, width - masks.acs_lines)))


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
def get_random_cartesian(masks, size: Size, density: float = 0.0) -> RandomCartesian:
    """Random columns at nominal acceleration R: keep = 1/R outside the ACS."""
    width = rows_and_columns(size)[1]
    return RandomCartesian(width, masks.acs_lines, _keep_probability(width, masks, density))


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
def get_equispaced_cartesian(masks, size: Size, density: float = 0.0) -> EquispacedCartesian:
    """Equispaced columns at nominal acceleration R."""
    width = rows_and_columns(size)[1]
    keep = _keep_probability(width, masks, density)
    return EquispacedCartesian(width, masks.acs_lines, 1.0 / keep if keep > 1 / width else float(width))


def _independent(key, probability, avoid) -> jax.Array:
    """(W,) bool: every column with its own probability; `avoid` moves the kept ones to columns outside it."""
    number_key, score_key = jax.random.split(key)
    kept = jax.random.uniform(number_key, probability.shape) < probability
    if avoid is None:
        return kept
    # As many columns, drawn one by one without replacement by their probability, those of `avoid` last.
    score = jnp.log(probability) + jax.random.gumbel(score_key, probability.shape)
    score = jnp.where(probability >= 1, jnp.inf, score - jnp.where(avoid.reshape(-1), 1e3, 0.0))
    return (jnp.argsort(jnp.argsort(-score)) < jnp.sum(kept)) & (probability > 0)


@dataclass(frozen=True)
class VariableDensityCartesian:
    """Columns, independently, with a probability that falls from 1 at the ACS to the edges of k-space.

    p_j = min(1, c (1 - |d_j|)^2 + floor), d the distance from the centre over W/2, floor a tenth of the mean, and c
    such that outside the ACS the mean is `keep`.
    """

    width: int
    acs_lines: int
    keep: float

    def probability(self) -> np.ndarray:
        """(W,) float64."""
        acs = centre_lines(self.width, self.acs_lines)
        fall = (1 - np.abs(np.arange(self.width) - self.width // 2) / (self.width / 2)) ** 2
        if self.keep >= 1 or acs.all():
            return np.ones(self.width)
        low, high = 0.0, 1e6

        def of(c):
            return np.where(acs, 1.0, np.minimum(1.0, c * fall + 0.1 * self.keep))

        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if of(middle)[~acs].mean() < self.keep else (low, middle)
        return of(high)

    def sample(self, key, avoid=None):
        return _independent(key, self.probability(), avoid).reshape(1, 1, self.width)

    def inclusion_probability(self):
        return jnp.asarray(self.probability(), jnp.float32).reshape(1, 1, self.width)


@MASKS.register("cartesian_variable_density")
def get_variable_density_cartesian(masks, size: Size, density: float = 0.0) -> VariableDensityCartesian:
    """Random columns, denser towards the centre, at nominal acceleration R."""
    width = rows_and_columns(size)[1]
    return VariableDensityCartesian(width, masks.acs_lines, _keep_probability(width, masks, density))


@dataclass(frozen=True)
class PartialFourierCartesian:
    """Random columns of three quarters of k-space: the outer quarter of one side, drawn by lot, is never acquired.

    Elsewhere outside the ACS columns are kept with one probability, such that over all of them the mean is `keep`;
    where that is not possible, more than three quarters are acquired.
    """

    width: int
    acs_lines: int
    keep: float

    def _sides(self) -> np.ndarray:
        """(2,W) float64: the probabilities with the left and with the right side missing."""
        acs = centre_lines(self.width, self.acs_lines)
        wanted = self.keep * (~acs).sum()  # columns outside the ACS, in the mean
        missing = min(self.width // 4, int((~acs).sum() - np.ceil(wanted - 1e-9)))
        sides = []
        for reach in (np.arange(self.width) >= missing, np.arange(self.width) < self.width - missing):
            inside = reach & ~acs
            sides.append(np.where(acs, 1.0, np.where(inside, wanted / max(1, inside.sum()), 0.0)))
        return np.stack(sides)

    def sample(self, key, avoid=None):
        side_key, key = jax.random.split(key)
        sides = jnp.asarray(self._sides())
        left = jax.random.bernoulli(side_key)
        return _independent(key, jnp.where(left, sides[0], sides[1]), avoid).reshape(1, 1, self.width)

    def inclusion_probability(self):
        return jnp.asarray(self._sides().mean(axis=0), jnp.float32).reshape(1, 1, self.width)


@MASKS.register("cartesian_partial_fourier")
def get_partial_fourier_cartesian(masks, size: Size, density: float = 0.0) -> PartialFourierCartesian:
    """Random columns of three quarters of k-space, at nominal acceleration R of the whole."""
    width = rows_and_columns(size)[1]
    return PartialFourierCartesian(width, masks.acs_lines, _keep_probability(width, masks, density))


@dataclass(frozen=True)
class PoissonDisc:
    """Entries of k-space: a central block of `acs` x `acs`, and `points` others at distances of operators/poisson_disc.

    A mask has exactly that number, but for rare draws in which fewer find room; where more do, lots are drawn.
    `shape`: (H,W). `centre_radius`: distance at the centre, which grows threefold to the middle of an edge.
    """

    shape: tuple[int, int]
    acs: int
    points: int
    centre_radius: float

    def sample(self, key, avoid=None):
        order_key, lot_key = jax.random.split(key)
        shape, acs = self.shape, poisson_disc.block(self.shape, self.acs)
        late = 0.0 if avoid is None else jnp.where(avoid.reshape(shape), 1.0 * acs.size, 0.0)  # covered ones come last
        radius, reach = poisson_disc.radii(shape, self.centre_radius), poisson_disc.reach_of(self.centre_radius)
        order, lot = (poisson_disc.draw_order(k, shape) + late for k in (order_key, lot_key))
        taken = poisson_disc.choose(order, radius, jnp.asarray(~acs), reach)
        lot = jnp.where(taken, lot, jnp.inf).ravel()
        rank = jnp.argsort(jnp.argsort(lot)).reshape(shape)
        return ((taken & (rank < self.points)) | acs)[None]

    def inclusion_probability(self):
        # By Monte Carlo: the mean of draws of fixed keys, and of squares of their transposes, which are as probable.
        rows, columns = self.shape
        draws = int(np.clip(2**22 // (rows * columns), 64, 1024))
        drawn = jax.lax.map(self.sample, jax.random.split(jax.random.key(0), draws), batch_size=16)
        mean = jnp.mean(drawn, axis=0, dtype=jnp.float32)
        return (mean + jnp.swapaxes(mean, -1, -2)) / 2 if rows == columns else mean


@MASKS.register("cartesian_poisson_disc")
def get_poisson_disc(masks, size: Size, density: float = 0.0) -> PoissonDisc:
    """Poisson-disc entries at nominal acceleration R; `masks.acs_lines` is the side of the central block.

    Its inclusion probability has a standard error of at most 0.011 at 64 x 64, 0.044 at 256 x 256.
    """
    shape = rows_and_columns(size)
    entries, acs = shape[0] * shape[1], min(shape[0], masks.acs_lines) * min(shape[1], masks.acs_lines)
    outside = entries - acs
    keep = min(1.0, max(0.0, (density * entries - acs) / max(1, outside))) if density else 0.0
    points = round((keep if density else 1.0 / masks.acceleration) * outside)
    return PoissonDisc(shape, masks.acs_lines, points, poisson_disc.centre_radius(shape, masks.acs_lines, points))


@dataclass(frozen=True)
class RandomBoxes:
    """Images: a grid x grid tiling of equal blocks, `drop` of them missing, circularly shifted by a random offset."""

    size: Size
    grid: int
    drop: int

    @property
    def shape(self) -> tuple[int, int]:
        return rows_and_columns(self.size)

    def sample(self, key, avoid=None):
        block_key, shift_key = jax.random.split(key)
        rows, columns = (size // self.grid for size in self.shape)
        shift = jax.random.randint(shift_key, (2,), 0, jnp.array([rows, columns]))
        score = jax.random.uniform(block_key, (self.grid, self.grid))
        if avoid is not None:  # keep the blocks with the least covered area
            covered = jnp.roll(avoid.reshape(self.shape), -shift, (0, 1))
            area = covered.reshape(self.grid, rows, self.grid, columns).mean((1, 3))
            score = score - 2.0 * self.shape[0] * self.shape[1] * area
        rank = jnp.argsort(jnp.argsort(score.ravel())).reshape(self.grid, self.grid)
        kept = jnp.repeat(jnp.repeat(rank >= self.drop, rows, 0), columns, 1)
        return jnp.roll(kept, shift, (0, 1))[..., None]

    def inclusion_probability(self):
        # Every block is dropped with the same probability, so every pixel is, whatever the shift.
        return jnp.full((*self.shape, 1), 1.0 - self.drop / self.grid**2, jnp.float32)


@MASKS.register("random_boxes")
def get_random_boxes(masks, size: Size, density: float = 0.0) -> RandomBoxes:
    """Random boxes of `masks.grid`^2 blocks with `masks.drop` of them missing (4 and 6 in the paper)."""
    drop = round((1 - density) * masks.grid**2) if density else masks.drop
    return RandomBoxes(size, masks.grid, drop)


def thin(key: jax.Array, mask: jax.Array, always: jax.Array, share) -> jax.Array:
    """One example's mask without some of its entries: each is kept with probability `share`, those of `always` ever."""
    return mask & (always | (jax.random.uniform(key, mask.shape) < share))


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
