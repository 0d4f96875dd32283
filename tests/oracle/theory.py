"""Gaussian toys: exact partial denoisers for the project's sampler, and the exact moments of what it then draws.

Data z ~ N(0, covariance) (z = T x, flattened to n entries) make every partial posterior mean linear,

    E[z | S u] = Sigma S^T (S Sigma S^T + sigma^2 I)^-1 S u,     u = z + sigma n,

so that the sampler without reinjection is a random linear recursion: masks pick the matrices, independently of all
noise. Its second moments follow from those matrices alone, exactly and for any number w of masks per level, because
the mask distributions here have few enough members to be listed. Everything in this file but the denoiser is float64
numpy and takes nothing from sampling.py.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from msm.configs.default import get_config
from msm.models.denoiser import Denoised
from msm.operators.masks import EquispacedCartesian, MaskDistribution
from msm.operators.randomness import example_keys
from msm.operators.transform import TRANSFORMS
from msm.sampling import SamplerSettings, get_sampler
from msm.sde_lib import get_schedule
from tests.helpers.toy_data import fourier

# Programs that draw 10^5 samples are worth optimising, which tests/conftest.py turns off.
OPTIMISED = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}


@dataclass(frozen=True)
class ListedMasks:
    """A mask distribution of a few given masks (count, *mask shape), drawn uniformly."""

    masks: np.ndarray

    def sample(self, key, avoid=None):
        assert avoid is None, "only iid draws can be enumerated"
        return jnp.asarray(self.masks)[jax.random.randint(key, (), 0, len(self.masks))]

    def inclusion_probability(self):
        return jnp.asarray(self.masks.mean(0), jnp.float32)


@dataclass(frozen=True)
class Toy:
    """A Gaussian world: what is measured, and with which masks.

    Attributes:
      transform: name in TRANSFORMS.
      shape: of a measurement without its batch axis; n is its product.
      covariance: (n,n) float64 or Hermitian complex128, E[z z^H].
      distribution: the MaskDistribution that is handed to the sampler.
      listed: (M, *mask shape) bool, all masks of `distribution` in equal shares (repeated ones allowed).
      maps: (coils,H,W) complex64 or None.
      operator: (n,pixels) T as a matrix, None for the identity.
    """

    transform: str
    shape: tuple[int, ...]
    covariance: np.ndarray
    distribution: MaskDistribution
    listed: np.ndarray
    maps: np.ndarray | None = None
    operator: np.ndarray | None = None

    @cached_property
    def kinds(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct masks (M, *mask shape) and their probabilities (M,)."""
        masks, counts = np.unique(self.listed, axis=0, return_counts=True)
        return masks, counts / counts.sum()

    @cached_property
    def flat_masks(self) -> np.ndarray:
        """(M,n) bool."""
        masks = self.kinds[0]
        return np.broadcast_to(masks, (len(masks), *self.shape)).reshape(len(masks), -1)

    @cached_property
    def probability(self) -> np.ndarray:
        """(n,) P(j in S)."""
        return self.kinds[1] @ self.flat_masks

    @property
    def unit(self) -> int:
        """E|n_j|^2 of the noise: N(0,1) per real scalar."""
        return TRANSFORMS[self.transform]().real_scalars

    def posterior_means(self, sigma: float) -> np.ndarray:
        """(M,n,n): row block m is E[z | S_m u] = D_m u."""
        seen = self.flat_masks
        inner = np.where(seen[:, :, None] & seen[:, None], self.covariance, 0)
        inner = inner + self.unit * sigma**2 * np.eye(seen.shape[1])
        return np.where(seen[:, None], self.covariance, 0) @ np.linalg.inv(inner) * seen[:, None]

    def partial_means(self, sigma: float) -> np.ndarray:
        """(M,n,n): S_m D_m, what a partial call returns."""
        return self.flat_masks[..., None] * self.posterior_means(sigma)

    def mean_field(self, sigma: float) -> np.ndarray:
        """(n,n): W E_S[S D_S], W = 1 / P(j in S): the aggregate of infinitely many masks."""
        return np.einsum("m,mij->ij", self.kinds[1], self.partial_means(sigma)) / self.probability[:, None]


def stationary(size: int, correlation: float, variance: float = 0.5, phase: float = 0.0) -> np.ndarray:
    """(size,size): variance correlation^|i-j| e^(i phase (i-j)), an autoregressive line; real without phase."""
    lag = np.subtract.outer(np.arange(size), np.arange(size))
    covariance = variance * correlation ** np.abs(lag)
    return covariance * np.exp(1j * phase * lag) if phase else covariance


def box_masks(size: int, grid: int, drop: int) -> np.ndarray:
    """All masks of RandomBoxes, (count,size,size,1): every choice of blocks at every shift within a block."""
    block, found = size // grid, []
    for dropped in itertools.combinations(range(grid**2), drop):
        blocks = ~np.isin(np.arange(grid**2), dropped).reshape(grid, grid)
        pixels = np.kron(blocks, np.ones((block, block), bool))
        found += [np.roll(pixels, shift, (0, 1)) for shift in itertools.product(range(block), repeat=2)]
    return np.stack(found)[..., None]


def comb_masks(width: int, acs_lines: int, step: int) -> np.ndarray:
    """All masks of EquispacedCartesian, (step,1,1,width)."""
    columns = np.arange(width)
    centre = np.abs(columns - width // 2 + 0.25) < acs_lines / 2
    return np.stack([(columns % step == offset) | centre for offset in range(step)])[:, None, None]


def boxes_toy(correlation: float = 0.8) -> Toy:
    """4x4 images with a separable stationary covariance; half of the 2x2 blocks is missing."""
    line = stationary(4, correlation, variance=1.0)
    masks = box_masks(4, 2, 2)
    return Toy("identity", (4, 4, 1), 0.5 * np.kron(line, line), ListedMasks(masks), masks)


def lines_toy(step: int = 4, correlation: float = 0.8) -> Toy:
    """8 real entries in a row, seen through equispaced combs of every `step`-th entry and one that is always there."""
    covariance = stationary(8, correlation)
    return Toy("identity", (1, 1, 8), covariance, EquispacedCartesian(8, 1, step), comb_masks(8, 1, step))


def coils_toy() -> Toy:
    """One complex line of 6 pixels behind two coils, k-space columns of step 3: z has 12 entries, of rank 6."""
    rng = np.random.default_rng(5)
    maps = rng.standard_normal((2, 1, 6)) + 1j * rng.standard_normal((2, 1, 6))
    maps = (maps / np.sqrt(np.sum(np.abs(maps) ** 2, axis=0))).astype(np.complex64)
    operator = fourier(maps * np.eye(6).reshape(6, 1, 1, 6)).astype(np.complex128).reshape(6, 12).T
    covariance = operator @ (2 * stationary(6, 0.8, phase=0.4)) @ operator.conj().T
    combs, listed = EquispacedCartesian(6, 2, 3), comb_masks(6, 2, 3)
    return Toy("multicoil_fourier", (2, 1, 6), covariance, combs, listed, maps, operator)


def whole(toy: Toy) -> Toy:
    """The same data with S = I."""
    everything = np.ones_like(toy.listed[:1])
    return replace(toy, distribution=ListedMasks(everything), listed=everything)


def white(toy: Toy, variance: float = 0.5) -> Toy:
    """The same acquisition of data whose entries are independent, of `variance` per real scalar."""
    return replace(toy, covariance=variance * toy.unit * np.eye(len(toy.covariance)))


def toy_schedule(name: str, **changes):
    """The project's schedule `name`, with the given settings of `config.schedule`."""
    config = get_config()
    config.schedule.name = name
    config.schedule.update(changes)
    return get_schedule(config)


def level_sigmas(schedule, num_levels: int) -> np.ndarray:
    """(L,) float64: the noise levels that a sampler visits."""
    return np.asarray(schedule.sigma(jnp.asarray(schedule.grid(num_levels))), np.float64)


def get_exact_denoiser(toy: Toy, schedule, num_levels: int) -> Callable[..., Denoised]:
    """Returns denoise(s_t, mask, maps, t) -> Denoised: the posterior mean under `toy`, NaN for a mask not listed.

    The matrices of all masks and of the levels of a sampler are made in float64 beforehand; `t` must be one of these
    levels, the same for the whole batch.
    """
    times = jnp.asarray(schedule.grid(num_levels))
    tables = np.stack([toy.posterior_means(sigma) for sigma in level_sigmas(schedule, num_levels)])
    tables = jnp.asarray(tables, TRANSFORMS[toy.transform]().dtype)  # (L,M,n,n)
    codes = jnp.asarray([_code(mask, np) for mask in toy.kinds[0].reshape(len(tables[0]), -1)])

    def denoise(s_t, mask, maps, t):
        del maps
        sigma, alpha = schedule.sigma(t[0]), schedule.alpha(t[:1])[0]
        u = s_t.reshape(s_t.shape[0], -1) / alpha
        drawn = _code(mask.reshape(mask.shape[0], -1), jnp)[:, None]

        def add(z0, kind):
            code, matrix = kind
            return z0 + jnp.where(drawn == code, u, 0) @ matrix.T, None

        z0, _ = jax.lax.scan(add, jnp.zeros_like(u), (codes, tables[jnp.argmin(jnp.abs(times - t[0]))]))
        z0 = jnp.where(jnp.any(drawn == codes, 1, keepdims=True), z0, jnp.nan).reshape(s_t.shape)
        s0 = jnp.where(mask, z0, 0)
        return Denoised(s0=s0, eps=jnp.where(mask, (u.reshape(s_t.shape) - s0) / sigma, 0), z0=z0)

    return denoise


def _code(mask, numpy):
    """(...,k) bool, k <= 31 -> (...) int32 that tells masks apart."""
    return numpy.sum(numpy.where(mask, 2 ** numpy.arange(mask.shape[-1], dtype=numpy.int32), 0), -1)


def draw(toy: Toy, schedule, settings: SamplerSettings, number: int, denoise=None, transform=None, start=None):
    """Returns jitted run(eta) -> (number, n): what the project's sampler makes of the toy.

    By default with the exact denoiser, from start = 0. `transform` and `start` (number, *shape) are the sampler's.
    """
    transform = transform or TRANSFORMS[toy.transform]()
    denoise = denoise or get_exact_denoiser(toy, schedule, settings.num_levels)
    sample = get_sampler(settings, schedule, transform, toy.distribution, denoise)
    start = jnp.zeros((number, *toy.shape), transform.dtype) if start is None else start

    def run(eta):
        keys = example_keys(jax.random.key(0), jnp.arange(number))
        return sample(keys, None, start, eta).reshape(number, -1)

    return jax.jit(run, compiler_options=OPTIMISED if number * math.prod(toy.shape) > 2**17 else None)


def recording(denoise: Callable[..., Denoised], schedule) -> tuple[Callable[..., Denoised], list]:
    """Returns `denoise` and a list that gets (u, mask, t) of every call, in order, as numpy arrays."""
    calls = []

    def record(s_t, mask, maps, t):
        u = s_t / schedule.alpha(t).reshape(-1, *[1] * (s_t.ndim - 1))
        mask = jnp.broadcast_to(mask, s_t.shape)
        io_callback(lambda *values: calls.append(tuple(map(np.asarray, values))), None, u, mask, t, ordered=True)
        return denoise(s_t, mask, maps, t)

    return record, calls


def multisets(probabilities: np.ndarray, w: int) -> Iterator[tuple[float, np.ndarray]]:
    """All ways to draw w masks of M kinds, order ignored: (probability, counts (M,))."""
    kinds = len(probabilities)
    for chosen in itertools.combinations_with_replacement(range(kinds), w):
        counts = np.bincount(chosen, minlength=kinds)
        ways = math.factorial(w) / math.prod(math.factorial(c) for c in counts)
        yield ways * float(np.prod(probabilities**counts)), counts


def aggregates(toy: Toy, sigma: float, w: int, weight: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What w masks may make of a level: zhat' = A u + keep * zhat with probability p.

    Returns p (K,), A (K,n,n), keep (K,n): `keep` is 1 on entries that no mask covers ('count' only). 'count' divides by
    how often an entry was drawn, 'population' by w P(j in S). w = 0 stands for infinitely many masks.
    """
    if w == 0:
        return np.ones(1), toy.mean_field(sigma)[None], np.zeros((1, len(toy.covariance)))
    probabilities, counts = (np.array(a) for a in zip(*multisets(toy.kinds[1], w), strict=True))
    total = np.einsum("km,mij->kij", counts, toy.partial_means(sigma))
    covered = counts @ toy.flat_masks
    if weight == "population":
        return probabilities, total / (w * toy.probability)[:, None], np.zeros(covered.shape)
    return probabilities, total / np.maximum(covered, 1)[..., None], (covered == 0).astype(float)


def fresh_noise(step: str, eta: float, now: float, after: float) -> float:
    """Standard deviation of a step's fresh noise: eta sigma' ('renoise'), or Song et al.'s eta ('ddim')."""
    return eta * after * (1.0 if step == "renoise" else math.sqrt(1 - (after / now) ** 2))


def covariances(toy: Toy, sigmas, w: int, step: str, eta: float, weight: str = "count") -> tuple[list, np.ndarray]:
    """Exact second moments of the sampler without reinjection: E[u u^H] at every level, and of the image it returns.

    With state (u, zhat), level sigma -> sigma' and b = sqrt(sigma'^2 - f^2) / sigma,

        zhat' = A u + keep zhat,     u' = (1 - b) zhat' + b u + f xi,

    so E[state state^H] is the average over the masks of K E[state state^H] K^H, plus the fresh noise.
    """
    n = len(toy.covariance)
    moment = np.zeros((2 * n, 2 * n), toy.covariance.dtype)
    moment[:n, :n] = toy.unit * sigmas[0] ** 2 * np.eye(n)
    levels = []
    for now, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        levels.append(moment[:n, :n].copy())
        p, a, keep = aggregates(toy, now, w, weight)
        fresh = fresh_noise(step, eta, now, after)
        old = math.sqrt(max(0.0, after**2 - fresh**2)) / now
        zhat = np.concatenate([a, keep[..., None] * np.eye(n)], axis=-1)
        u = (1 - old) * zhat + old * np.eye(n, 2 * n)
        move = np.concatenate([u, zhat], axis=-2)
        moment = np.tensordot(p, move @ moment @ move.conj().swapaxes(1, 2), 1)
        moment[:n, :n] += toy.unit * fresh**2 * np.eye(n)
    return levels, moment[n:, n:]


def covariance_of(samples: np.ndarray) -> np.ndarray:
    """(N,n) -> (n,n) float64: mean of s s^H."""
    samples = np.asarray(samples)
    return (samples.T @ samples.conj()).astype(np.complex128 if np.iscomplexobj(samples) else np.float64) / len(samples)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative Frobenius distance |a - b| / |b|."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
