"""Poisson-disc points of k-space: random, and no two nearer than a distance that grows away from the centre.

The points of the grid are visited in a random order, and a point is taken unless one taken before is too near: nearer
than the larger of the two points' distances r. That result does not depend on how it is computed, so it is computed for
all points at once: whoever comes first among its undecided neighbours is taken, and strikes them out; a few rounds
leave nobody undecided (Luby, SIAM J Comput 15:1036, 1986).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_GROWTH = 2.0  # r at the middle of an edge of k-space is 1 + growth times that of the centre
LARGEST = 16  # entries: no distance is larger
_CORNER = 1 + _GROWTH * np.sqrt(2)  # r of a corner over that of the centre
_SEARCH = 10  # halvings of the interval in which the centre's r is searched
_DRAWS, _ENTRIES = 8, 2**16  # the search looks at so many draws, or fewer of large grids: so many entries at least
_SPARE = 1.02  # more points than wanted, lest a draw has too few


def radii(shape: tuple[int, int], centre_radius):
    """(H,W) float32: r = centre_radius (1 + 2 d), at most 16, d the distance from the centre (H//2, W//2) over (H,W)/2.

    So r is three times that of the centre in the middle of every edge, whatever the shape.
    """
    rows, columns = ((np.arange(size) - size // 2) / (size / 2) for size in shape)
    distance = np.hypot(rows[:, None], columns)
    return jnp.minimum(centre_radius * (1 + _GROWTH * distance), LARGEST).astype(jnp.float32)


def reach_of(centre_radius: float) -> int:
    """The largest of the `radii`, rounded up."""
    return max(1, int(np.ceil(min(LARGEST, 1.001 * _CORNER * centre_radius))))


def choose(order: jax.Array, radius: jax.Array, open_: jax.Array, reach: int) -> jax.Array:
    """(H,W) bool: which points are taken. No more of the `open_` ones can be taken.

    Args:
      order: (H,W) float, all different, see `draw_order`: lower ones come first.
      radius: (H,W) r of every point; two taken points p, q are at least max(r_p, r_q) apart.
      open_: (H,W) bool, which points may be taken.
      reach: no r is larger than this number of entries.
    """
    width = 2 * reach + 1
    away = np.arange(width) - reach
    distance = jnp.asarray(np.hypot(away[:, None], away), jnp.float32)
    near_radius = jnp.pad(radius, reach)

    def over_neighbours(fold, start, values):
        """Folds the values of each point's too near neighbours, one offset after the other."""
        padded = jnp.pad(values, reach, constant_values=jnp.inf)

        def visit(index, folded):
            row, column = index // width, index % width
            there = jax.lax.dynamic_slice(padded, (row, column), order.shape)
            reached = jnp.maximum(radius, jax.lax.dynamic_slice(near_radius, (row, column), order.shape))
            apart = distance[row, column]
            return fold(folded, jnp.where((apart > 0) & (apart < reached), there, jnp.inf))

        return jax.lax.fori_loop(0, width**2, visit, start)

    def play(state):
        taken, undecided = state
        waiting = jnp.where(undecided, order, jnp.inf)
        first = undecided & (order < over_neighbours(jnp.minimum, jnp.full_like(order, jnp.inf), waiting))
        struck = over_neighbours(jnp.minimum, jnp.full_like(order, jnp.inf), jnp.where(first, 0.0, jnp.inf)) < jnp.inf
        return taken | first, undecided & ~first & ~struck

    nobody = jnp.zeros_like(open_)
    return jax.lax.while_loop(lambda state: jnp.any(state[1]), play, (nobody, open_))[0]


def draw_order(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """(H,W) float32: a random permutation of 0 .. HW - 1, which are exact and, unlike random floats, all different."""
    return jax.random.permutation(key, shape[0] * shape[1]).astype(jnp.float32).reshape(shape)


def block(shape: tuple[int, int], side: int) -> np.ndarray:
    """(H,W) bool: the central square of `side` x `side` entries, or what of it there is room for."""
    rows, columns = (
        (np.arange(size) >= start) & (np.arange(size) < start + side)
        for size in shape
        for start in [size // 2 - side // 2]
    )
    return rows[:, None] & columns


@functools.cache
def centre_radius(shape: tuple[int, int], side: int, points: int) -> float:
    """The largest r of the centre at which draws have at least `points` points outside the central block of `side`.

    By bisection on draws of fixed keys. The same numbers on every device, up to a draw that is decided by rounding.
    """
    entries = shape[0] * shape[1]
    draws = int(np.clip(_ENTRIES // entries, 1, _DRAWS))
    open_ = np.asarray(~block(shape, side))
    # Discs that touch no further ones cover 0.55 of a plane, so r is about 0.36 at the centre for one point per entry.
    low, high = 1 / _CORNER, 0.6 * np.sqrt(entries / max(1, points))  # at `low` no r is above 1: all are taken
    reach = reach_of(high)

    @jax.jit
    def fewest(centre):
        orders = jax.vmap(lambda key: draw_order(key, shape))(jax.random.split(jax.random.key(0), draws))
        taken = jax.vmap(lambda order: choose(order, radii(shape, centre), jnp.asarray(open_), reach))(orders)
        return jnp.min(jnp.sum(taken, axis=(1, 2)))

    wanted = min(points * _SPARE, float(open_.sum()))
    with jax.ensure_compile_time_eval():
        for _ in range(_SEARCH):
            middle = (low + high) / 2
            low, high = (middle, high) if float(fewest(middle)) >= wanted else (low, middle)
    return float(low)
