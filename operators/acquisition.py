"""H = S T, the acquisitions of a data store as an operator: the entries of T x that a mask keeps."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from msm.operators.inverse import get_damped_inverse
from msm.operators.operator import every_copy
from msm.operators.transform import Identity, Transform, normal

PINV_STEPS = 300  # of conjugate gradients, where neither masks of columns nor T = I make the pseudo-inverse exact


@dataclass(frozen=True)
class Acquisition:
    """H x = S T x: multi-coil MRI with its mask and maps, or images with missing pixels (inpainting).

    Attributes:
      transform: T, with |T| <= 1.
      cg_steps: of the damped inverse, where it has no closed form (`operators.inverse.get_damped_inverse`).
    """

    transform: Transform
    cg_steps: int = 20

    def image_shape(self, measurement_shape):
        return self.transform.image_shape(measurement_shape)

    def norm(self, image_shape):
        del image_shape
        return 1.0

    def forward(self, x, mask, maps):
        return jnp.where(mask, self.transform.forward(x, maps), 0)

    def adjoint(self, y, mask, maps):
        return self.transform.adjoint(jnp.where(mask, y, 0), maps)

    def normal(self, x, mask, maps):
        return normal(self.transform, x, mask, maps)

    def get_pinv(self, mask, maps) -> Callable:
        """Exact by rows for masks of whole columns (singular values below RANK_CUTOFF^(1/2) count as 0), and for T = I;
        else conjugate gradients until rounding."""
        if type(self.transform) is Identity:
            return lambda y: self.adjoint(y, every_copy(mask, y.shape[0]), None)
        solve = get_damped_inverse(self.transform, mask, maps, PINV_STEPS)

        def pinv(y):
            b = self.adjoint(y, every_copy(mask, y.shape[0]), every_copy(maps, y.shape[0]))
            return solve(b, jnp.zeros(b.shape[0]))

        return pinv

    def get_damped_inverse(self, mask, maps) -> Callable:
        return get_damped_inverse(self.transform, mask, maps, self.cg_steps)
