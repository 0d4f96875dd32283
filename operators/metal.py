"""Metal in computed tomography: what a polychromatic beam makes of it, which rays it spoils, and bridging those.

Attenuation is relative to water at the effective energy: an image x holds mu / mu_water - 1 = HU / 1000. Path lengths
are in cm. A scanner's photons have many energies; soft ones are absorbed first ("beam hardening"), so that minus the
logarithm of what arrives is no line integral any more. The usual correction makes it one for water alone; bone is left
a little wrong and metal much. Rays through metal are therefore treated as missing (their trace), as in Song et al.

  Spectrum, water_correction       the beam, and the correction of its hardening
  materials_of, transmit           photons through tissue and metal
  implants                         metal discs at random places of a body
  segment_metal, metal_trace       where the metal is, and which rays meet it
  interpolate                      linear interpolation across the trace (Kalender et al., Radiology 164, 1987)
  Scanner                          all of it: the measurement of one image
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from msm.operators import ct
from msm.operators.materials import DENSITY, ENERGIES, MASS_ATTENUATION

BONE = (100.0, 1500.0)  # HU: below the first all water, above the second all bone, shares of both in between
METAL_HU = 2500.0  # what is brighter is metal: dense bone has at most about 2000
BODY_HU = -300.0  # implants lie in what is denser than this
DEGREE = 3  # of the polynomial that corrects the hardening by water, as published
LONGEST_WATER = 60.0  # cm that it is fitted to
SHORTEST = 1e-3  # pixels of metal that a ray must meet to count as spoiled: more than rounding makes of none


@dataclass(frozen=True)
class Spectrum:
    """How a beam's detected photons are distributed over energies.

    Attributes:
      weights: share of each of `materials.ENERGIES`, summing to 1.
      effective: keV, one of them: the energy at which images hold attenuation.
    """

    weights: tuple[float, ...]
    effective: float = 70.0

    def attenuation(self, material: str) -> np.ndarray:
        """(E,) linear attenuation in 1/cm at every energy."""
        return DENSITY[material] * np.asarray(MASS_ATTENUATION[material])

    def at_effective(self, material: str) -> float:
        """Linear attenuation in 1/cm at the effective energy."""
        return float(self.attenuation(material)[ENERGIES.index(self.effective)])


def tube(kilovolts: float = 120.0, aluminium: float = 0.6) -> Spectrum:
    """Bremsstrahlung by Kramers' law, (E0 - E) / E photons per energy, behind a filter (cm), detected by energy.

    Without the lines of the anode; H. A. Kramers, Philosophical Magazine 46, 1923.
    """
    energy = np.asarray(ENERGIES)
    photons = np.maximum(kilovolts - energy, 0) / energy
    passed = photons * np.exp(-DENSITY["aluminium"] * np.asarray(MASS_ATTENUATION["aluminium"]) * aluminium)
    return Spectrum(tuple((passed * energy / np.sum(passed * energy)).tolist()))


def monochromatic(energy: float = 70.0) -> Spectrum:
    """Photons of one energy: no hardening."""
    return Spectrum(tuple(float(e == energy) for e in ENERGIES), energy)


def materials_of(x: jax.Array, metal: jax.Array) -> jax.Array:
    """What pixels are made of, (B,n,n,3): attenuation of water and of bone relative to water, and 1 where metal is.

    An image in HU / 1000 is divided by `BONE`. Where there is metal, there is nothing else.

    Args:
      x: (B,n,n,1) float32.
      metal: (B,n,n,1) bool.
    """
    low, high = (hu / 1000 for hu in BONE)
    density = jnp.where(metal, 0, jnp.maximum(1 + x, 0))
    share = jnp.clip((x - low) / (high - low), 0, 1)
    return jnp.concatenate([(1 - share) * density, share * density, metal.astype(x.dtype)], axis=-1)


def transmit(lengths: jax.Array, spectrum: Spectrum, metal: str) -> jax.Array:
    """Share of the photons that arrive, (B,V,D,1): sum_E weight_E exp(-sum_m mu_m(E) length_m).

    `lengths` (B,V,D,3): line integrals of `materials_of` in cm.
    """
    water, bone = (spectrum.attenuation(name) / spectrum.at_effective(name) for name in ("water", "bone"))
    unit = spectrum.at_effective("water")  # of both: an image tells attenuation, whatever it is made of
    table = np.stack([unit * water, unit * bone, spectrum.attenuation(metal)]).astype(np.float32)
    exponent = jnp.einsum("bvdm,me->bvde", lengths, table, precision="highest")
    weights = np.asarray(spectrum.weights, np.float32)
    return jnp.sum(weights * jnp.exp(-exponent), axis=-1, keepdims=True)


def detect(key: jax.Array, share: jax.Array, photons: float) -> jax.Array:
    """Detected photons of `photons` sent along every ray: Poisson; at least 1, whose logarithm exists."""
    return jnp.maximum(jax.random.poisson(key, photons * share).astype(share.dtype), 1)


def water_correction(spectrum: Spectrum) -> np.ndarray:
    """(DEGREE,) coefficients of p, p^2, ...: cm of water that p = -log(transmitted share) stands for."""
    lengths = np.linspace(0, LONGEST_WATER, 200)
    p = -np.log(np.exp(-np.multiply.outer(lengths, spectrum.attenuation("water"))) @ np.asarray(spectrum.weights))
    powers = p[:, None] ** np.arange(1, DEGREE + 1)
    return np.linalg.lstsq(powers, lengths, rcond=None)[0].astype(np.float32)


def correct(p: jax.Array, coefficients: np.ndarray) -> jax.Array:
    """Corrected line integrals in cm of water, by the polynomial of `water_correction`."""
    return jnp.polyval(np.append(coefficients[::-1], 0), p)


def implants(key: jax.Array, x: jax.Array, count: int) -> jax.Array:
    """(n,n,1) bool: `count` discs of 2 to 5 % of the width as radius, anywhere in the body of an image (n,n,1)."""
    size = x.shape[0]
    place_key, radius_key = jax.random.split(key)
    body = jnp.where(x.ravel() > BODY_HU / 1000, 0.0, -jnp.inf)
    centres = jax.random.categorical(place_key, body, shape=(count,))
    radii = size * jax.random.uniform(radius_key, (count,), minval=0.02, maxval=0.05)
    rows, columns = jnp.divmod(jnp.arange(size * size)[:, None], size)
    distance = jnp.hypot(rows - centres // size, columns - centres % size)
    return jnp.any(distance <= radii, axis=1).reshape(size, size, 1)


def segment_metal(x: jax.Array) -> jax.Array:
    """Bool like x: pixels of an image in HU / 1000 that are brighter than METAL_HU."""
    return x > METAL_HU / 1000


def metal_trace(metal: jax.Array, angles: np.ndarray) -> jax.Array:
    """(B,V,D,1) bool: the rays that meet metal (B,n,n,1) bool, by the shadows of its pixels."""
    return ct.project(metal.astype(jnp.float32), angles) > SHORTEST


def interpolate(values: jax.Array, known: jax.Array) -> jax.Array:
    """Fills unknown entries of every view linearly between the nearest known bins; beyond the last known one by it.

    Args:
      values: (B,V,D,K).
      known: bool, broadcastable to it. A view without any known ray becomes 0.
    """
    known = jnp.broadcast_to(known, values.shape)
    bins = values.shape[2]
    place = jnp.arange(bins)[:, None]
    left = jax.lax.cummax(jnp.where(known, place, -1), axis=2)
    right = jax.lax.cummin(jnp.where(known, place, bins), axis=2, reverse=True)
    one, other = (jnp.take_along_axis(values, jnp.clip(i, 0, bins - 1), axis=2) for i in (left, right))
    share = jnp.where(right > left, (place - left) / jnp.maximum(right - left, 1), 0)
    between = (1 - share) * one + share * other
    filled = jnp.where(left < 0, other, jnp.where(right >= bins, one, between))
    return jnp.where((left < 0) & (right >= bins), 0, filled)


@dataclass(frozen=True)
class Scanner:
    """How an image with implants is measured, for `operator`'s views.

    Attributes:
      operator: R, whose units measurements have.
      metal: material of the implants, of `materials.DENSITY`.
      implants: how many.
      photons: sent along every ray.
      field: side of an image in cm.
      spectrum: of the beam.
    """

    operator: ct.ParallelBeam
    metal: str
    implants: int
    photons: float
    field: float
    spectrum: Spectrum

    def draw_metal(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """(n,n,1) bool: the implants of one image (n,n,1)."""
        return implants(jax.random.fold_in(key, 0), x, self.implants)

    def measure(self, key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of one image: the corrected sinogram (V,D,1), which rays miss the metal (V,D,1), their noise ().

        The sinogram is in units of `operator`, whole: entries of spoiled rays are what the scanner gives there. The
        noise is the root mean square over the rays that miss the metal.
        """
        size, everything = x.shape[0], jnp.ones((1, *x.shape))
        pixel, metal = self.field / size, self.draw_metal(key, x)[None]
        parts = jnp.concatenate([materials_of(x[None], metal), everything], axis=-1)
        rays = ct.project(parts, self.operator.angles)
        share = transmit(pixel * rays[..., :3], self.spectrum, self.metal)
        counts = detect(jax.random.fold_in(key, 1), share, self.photons)
        coefficients, p = water_correction(self.spectrum), -jnp.log(counts / self.photons)
        unit, known = pixel * self.operator.scale(size), rays[..., 2:3] <= SHORTEST
        slope = jnp.polyval(coefficients[::-1] * np.arange(DEGREE, 0, -1), p)
        variance = jnp.sum(jnp.where(known, slope**2 / counts, 0)) / jnp.maximum(jnp.sum(known), 1)
        lengths = correct(p, coefficients) / pixel - rays[..., 3:]  # of x, which is -1 where nothing attenuates
        return (lengths / self.operator.scale(size))[0], known[0], jnp.sqrt(variance) / unit
