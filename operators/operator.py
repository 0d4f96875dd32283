"""What a posterior solver knows about an acquisition: the linear operator H of y = H x + noise, and its inverses."""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from msm.operators.measurement import Array

MIN_DAMPING = 1e-5  # mu that keeps noiseless problems with a null space solvable in float32


class Operator(Protocol):
    """H from images x (B,...) to measurements y (B,...), example by example.

    What differs between examples comes with the measurement and is an argument: mask (bool, broadcastable to y) and
    maps (coil maps or None). An operator without a mask measures all of y: it ignores both. Everything else (a factor,
    a kernel) is the operator's own. Images of one measurement may come as K copies of the batch one after the other,
    (K*B,...), to what the two `get_` methods return: what is prepared there serves every copy and every noise level.
    """

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of x for a given shape of y."""
        ...

    def norm(self, image_shape: tuple[int, ...]) -> float:
        """The largest singular value of H, or a bound of it, for images (B,...) of this shape; at most 1."""
        ...

    def forward(self, x: jax.Array, mask: Array, maps: Array | None) -> jax.Array:
        """y = H x, exactly 0 outside the mask."""
        ...

    def adjoint(self, y: jax.Array, mask: Array, maps: Array | None) -> jax.Array:
        """H^H y. Values of y outside the mask are not read."""
        ...

    def normal(self, x: jax.Array, mask: Array, maps: Array | None) -> jax.Array:
        """H^H H x."""
        ...

    def get_pinv(self, mask: Array, maps: Array | None) -> Callable[[jax.Array], jax.Array]:
        """Returns pinv(y): H^+ y, the Moore-Penrose pseudo-inverse; the image of least norm that fits y best."""
        ...

    def get_damped_inverse(self, mask: Array, maps: Array | None) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """Returns solve(b, mu): (H^H H + mu I)^-1 b for images b (K*B,...) and mu (K*B,) >= 0; 0: the pseudo-inverse.

        Rounding grows with the condition, by about 1/mu relative to b.
        """
        ...


def per_example(values: jax.Array, like: jax.Array) -> jax.Array:
    """(B,) -> (B,1,...,1) with the rank of `like`."""
    return jnp.reshape(values, (-1, *[1] * (like.ndim - 1)))


def damped_reciprocal(values: Array, mu: jax.Array) -> jax.Array:
    """1 / (values + mu), and 0 where that is 1/0: eigenvalues of (H^H H + mu I)^-1, with mu = 0 of the pseudo-inverse.

    Args:
      values: eigenvalues of H^H H, exactly 0 on its null space.
      mu: >= 0, broadcastable to them.
    """
    total = values + mu
    return jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)


def every_copy(array: Array | None, count: int) -> Array | None:
    """Repeats a batch (B,...) to (count,...), one copy after the other; None stays None."""
    if array is None or array.shape[0] == count:
        return array
    return jnp.tile(array, (count // array.shape[0], *[1] * (array.ndim - 1)))
