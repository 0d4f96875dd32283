"""Coil sensitivity maps from the fully sampled centre of k-space (ACS): ESPIRiT, Walsh's method, low-resolution images.

`get_coil_maps(name, **settings)` returns a function of k-space and mask. Which lines belong to the ACS is read from the
mask alone, example by example; the rest is compiled once per array shape and kernel size.

Maps are what `operators.measurement.Measurement` wants: sum_c |C_c|^2 = 1 where the estimator finds signal, exactly 0
elsewhere. Maps are determined up to a phase per pixel. Here, as in BART, the virtual coil u^H C is real and >= 0, u
being the leading principal component of the coils over the ACS, whose own phase makes its largest entry positive.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msm.infra.errors import UserError
from msm.infra.registry import Registry
from msm.operators.fourier import ifft2c

EstimateMaps = Callable[[Any, Any], jax.Array]

COIL_MAPS: Registry[Callable[..., EstimateMaps]] = Registry("coil map estimator")

CALIBRATION = 24  # central lines, the most that maps are estimated from
_KERNEL = 6  # k-space neighbours along either axis, as in the ESPIRiT paper
_ENOUGH = 2 * _KERNEL - 1  # ACS entries along an axis for a patch of that size to have as many shifts as it is long
_PRECISE = jax.lax.Precision.HIGHEST  # accelerators would multiply float32 matrices with fewer digits
_CHUNK = 2**20  # complex entries of the pixels' covariances that are held at a time: 8 MB, or one row if that is more


def get_coil_maps(name: str, **settings) -> EstimateMaps:
    """Returns `estimate(y, mask) -> maps` of a registered estimator; `settings` are the arguments of its factory.

    y: (B,C,H,W) complex64 centred k-space, any scale, any H and W, even or odd. mask: bool, not traced, (B,1,1,W) for
    lines or (B,1,H,W); a mask without the batch axis, (1,1,W) or (1,H,W), holds for all. maps: (B,C,H,W) complex64.
    The maps of an example depend on its own y and mask only. Slices run one after the other, so memory does not grow
    with B. Raises UserError for an unknown name, for arrays that do not fit, and for an ACS that is too small.
    """
    return COIL_MAPS[name](**settings)


def find_acs(mask, most: int = CALIBRATION) -> tuple[int, int, int, int]:
    """Returns (top, bottom, left, right), half open, of the fully acquired block around the centre of k-space.

    The block starts from the central entry and grows by whole rows and columns as long as everything that it would
    take in is acquired, but not beyond the central `most` x `most` entries. It need not be symmetric.

    Args:
      mask: (1,W) bool for lines that are acquired over the full readout, or (H,W) bool.
      most: largest number of rows and of columns.

    Of a (1,W) mask the rows are 0 and 1: the caller knows how many rows there are. An empty block means that the centre
    was not acquired.
    """
    mask = np.asarray(mask, bool)
    centre = [n // 2 for n in mask.shape]
    low, high = list(centre), [c + 1 for c in centre]
    if not mask[tuple(centre)]:
        return centre[0], centre[0], centre[1], centre[1]
    least = [max(0, c - most // 2) for c in centre]
    greatest = [min(n, c - most // 2 + most) for c, n in zip(centre, mask.shape, strict=True)]
    grown = True
    while grown:
        grown = False
        for axis in (1, 0):
            across = slice(low[1 - axis], high[1 - axis])
            lines = np.moveaxis(mask, axis, 0)
            if low[axis] > least[axis] and lines[low[axis] - 1, across].all():
                low[axis], grown = low[axis] - 1, True
            if high[axis] < greatest[axis] and lines[high[axis], across].all():
                high[axis], grown = high[axis] + 1, True
    return low[0], high[0], low[1], high[1]


@COIL_MAPS.register("espirit")
def get_espirit(
    kernel: tuple[int, int] | None = None, calibration: int = CALIBRATION, threshold: float = 0.001, crop: float = 0.8
) -> EstimateMaps:
    """ESPIRiT, one set of maps (Uecker et al., Magn Reson Med 71:990, 2014; defaults of BART's `ecalib -m1`).

    Patches of k-space over all coils span a small space. With P the projector onto it, the maps at a pixel x are the
    eigenvector, of eigenvalue 1, of G(x)_cc' = 1/k^2 sum_dd' P_(d,c)(d',c') exp(2 pi i (d - d') x / N).

    Args:
      kernel: rows and columns of a patch. None chooses example by example: 6 along an axis of 11 or more ACS entries
        and, of 5 to 10, two sizes. (n + 1) // 2 decides where maps are 0: such a patch has at least as many shifts as
        it is long (with fewer, the signal's space is not seen whole, and `crop` cuts holes into the object). Elsewhere
        they are the eigenvectors of (n + 1) // 3, with at least twice as many shifts as it is long: their errors are
        smaller, though the eigenvalues tell less of what lies outside the object. Of fewer than 5, 2: maps are poor.
      calibration: largest number of rows and columns of the ACS that are used.
      threshold: eigenvalues of the patches' Gram matrix above this fraction of the largest belong to the signal
        (squares of singular values: BART's `-t`; sigpy's `thresh` is the square root of ours).
      crop: maps are 0 where the leading eigenvalue of G is not larger (BART's `-c`).

    Memory: the Gram matrix, (k^2 C)^2 complex64 (11 MB for 32 coils), a few times over, G along the columns, 11 W C^2
    entries (23 MB for 32 coils at 256), and 8 MB of G at a time, beside y and the maps. Raises UserError if the ACS has
    fewer than 2 k - 1 lines for a given `kernel`, or fewer than 3.
    """

    def run(y, block, window):
        entries = block[1] - block[0], block[3] - block[2]
        _check_acs(*entries, *(2 * k - 1 for k in kernel or (2, 2)))
        vectors_of, support_of = (kernel, kernel) if kernel else kernels_of(*entries)
        return _espirit(y, np.array(block), threshold, crop, window=window, kernel=vectors_of, support=support_of)

    return _for_each_example(run, calibration)


def kernels_of(*entries: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes that `get_espirit` chooses along axes of so many ACS entries: of the eigenvectors, of the support."""
    support = tuple(min((n + 1) // 2, _KERNEL) for n in entries)
    return tuple(_KERNEL if n >= _ENOUGH else max(2, (n + 1) // 3) for n in entries), support


@COIL_MAPS.register("walsh")
def get_walsh(block: int = 7, calibration: int = CALIBRATION, crop: float = 0.05) -> EstimateMaps:
    """Adaptive combination (Walsh et al., Magn Reson Med 43:682, 2000) of the images of the Hann-windowed ACS.

    The maps at a pixel are the leading eigenvector of the coils' covariance over `block` x `block` pixels around it.
    They are 0 where its eigenvalue is not above crop^2 of the largest one. `calibration`: see `get_espirit`.
    """
    if block % 2 == 0 or block < 1:
        raise UserError(f"the block of the Walsh maps is centred on a pixel: {block} is not odd and positive")

    def run(y, acs, window):
        _check_acs(acs[1] - acs[0], acs[3] - acs[2])
        return _walsh(y, np.array(acs), crop, window=window, size=block)

    return _for_each_example(run, calibration)


@COIL_MAPS.register("lowres")
def get_lowres(calibration: int = CALIBRATION, crop: float = 0.05) -> EstimateMaps:
    """Images of the Hann-windowed ACS divided by their root sum of squares over coils (McKenzie et al., 2002).

    They are 0 where that is not above `crop` of its largest value. `calibration`: see `get_espirit`.
    """

    def run(y, acs, window):
        _check_acs(acs[1] - acs[0], acs[3] - acs[2])
        return _lowres(y, np.array(acs), crop, window=window)

    return _for_each_example(run, calibration)


def _check_acs(rows: int, columns: int, rows_needed: int = 3, columns_needed: int = 3) -> None:
    if rows < rows_needed or columns < columns_needed:
        kernel = (rows_needed + 1) // 2, (columns_needed + 1) // 2
        raise UserError(
            f"coil maps need {columns_needed} fully sampled central lines (ACS) of {rows_needed} entries or more, but "
            f"a mask has {columns} of {rows}: acquire more central lines"
            + (f" or take a smaller kernel than {kernel[0]} x {kernel[1]}" if max(kernel) > 2 else "")
        )


def _for_each_example(run: Callable, calibration: int) -> EstimateMaps:
    """Wraps `run(y (C,H,W), ACS block, window) -> maps`: checks arrays and finds every example's ACS."""

    def estimate(y, mask) -> jax.Array:
        y, mask = jnp.asarray(y, jnp.complex64), np.asarray(mask)
        if y.ndim != 4:
            raise UserError(f"coil maps need k-space of shape (B,C,H,W), got {y.shape}")
        batch, _, height, width = y.shape
        fits = mask.shape[-3:] in ((1, 1, width), (1, height, width)) and mask.shape[:-3] in ((), (1,), (batch,))
        if mask.dtype != bool or not fits:
            got = f"{mask.dtype} {mask.shape}"
            raise UserError(f"coil maps of k-space {y.shape} need a boolean mask (B,1,1,W) or (B,1,H,W), got {got}")
        masks = np.broadcast_to(mask, (batch, *mask.shape[-3:]))[:, 0]
        window = tuple((n // 2 - m // 2, m) for n in (height, width) for m in [min(n, calibration)])
        # One slice at a time: memory does not grow with the batch, nor is anything compiled anew for another batch.
        return jnp.stack([run(y[i], _block(masks[i], height, calibration), window) for i in range(batch)])

    return estimate


def _block(mask: np.ndarray, height: int, most: int) -> tuple[int, int, int, int]:
    """`find_acs` with the rows of a mask of lines filled in."""
    if mask.shape[0] == 1:
        rows = min(height, most)
        top = height // 2 - rows // 2
        _, _, left, right = find_acs(mask, most)
        return top, top + rows, left, right
    return find_acs(mask, most)


@functools.partial(jax.jit, static_argnames=("window", "kernel", "support"))
def _espirit(y, block, threshold, crop, *, window, kernel, support):
    """(C,H,W) k-space and (4,) int ACS block -> maps: eigenvectors of `kernel`, 0 by the eigenvalues of `support`.

    `window`: see `_cut`.
    """
    acs, rows, columns = _cut(y, block, window)

    def eigen(size):
        cov = _image_covariance(_signal_projector(acs, rows, columns, size, threshold), size)
        return _eigenmaps(cov, size, y.shape)

    vectors, values = eigen(kernel)
    if support != kernel:
        _, values = eigen(support)
    return _virtual_coil_phase(jnp.where(values > crop, vectors, 0), acs)


def _eigenmaps(cov, kernel, shape):
    """Fourier coefficients of G -> its leading eigenvectors (C,H,W) and eigenvalues (H,W) at every pixel."""
    coils, height, width = shape
    along_columns = jnp.einsum("xw,hwcd->hcdx", _waves(jnp.arange(width), width, kernel[1]), cov, precision=_PRECISE)

    def at_row(row):
        return jnp.einsum("h,hcdx->cdx", _waves(row, height, kernel[0]), along_columns, precision=_PRECISE)

    return _leading_vectors(at_row, height, width, coils)


def _cut(y, block, window):
    """Returns the ACS in a fixed window, exactly 0 outside the example's own block, and where the block lies in it.

    y: (C,H,W). window: ((first row, rows), (first column, columns)) of the window, static. block: (4,) int as
    `find_acs` returns it, traced. Returns (C,R,A) complex64 of norm 1 (any scale of y is alike), (R,) and (A,) bool.
    """
    (top, rows), (left, columns) = window
    in_rows, in_columns = (
        (index >= block[2 * axis]) & (index < block[2 * axis + 1])
        for axis, index in enumerate((top + jnp.arange(rows), left + jnp.arange(columns)))
    )
    acs = jnp.where(in_rows[:, None] & in_columns, y[:, top : top + rows, left : left + columns], 0)
    largest = jnp.max(jnp.abs(acs))
    acs = acs / jnp.where(largest > 0, largest, 1)
    norm = jnp.sqrt(jnp.sum(jnp.abs(acs) ** 2))
    return acs / jnp.where(norm > 0, norm, 1), in_rows, in_columns


def _signal_projector(acs, rows, columns, kernel, threshold):
    """(D,C,D,C) complex64 projector onto the span of the patches of the ACS, D = entries of the kernel."""
    coils, entries = acs.shape[0], kernel[0] * kernel[1]
    row, column = (np.arange(k)[:, None] + np.arange(n - k + 1) for n, k in zip(acs.shape[1:], kernel, strict=True))
    inside = rows[row].all(0)[:, None] & columns[column].all(0)  # shifts whose patch lies in the ACS
    patches = jnp.where(inside, acs[:, row[:, None, :, None], column[:, None]], 0)  # (C, kernel, shifts)
    patches = jnp.moveaxis(patches, 0, 2).reshape(entries * coils, -1)
    gram = jnp.matmul(patches, patches.conj().T, precision=_PRECISE)
    values, vectors = jnp.linalg.eigh(gram)
    vectors = jnp.where(values > threshold * values[-1], vectors, 0)
    projector = jnp.matmul(vectors, vectors.conj().T, precision=_PRECISE)
    return projector.reshape(entries, coils, entries, coils)


def _image_covariance(projector, kernel):
    """(2kh-1,2kw-1,C,C): Fourier coefficients of G, the sums of the projector over equal differences of offsets."""
    coils = projector.shape[1]
    row, column = (index.ravel() for index in np.indices(kernel))
    size = tuple(2 * k - 1 for k in kernel)
    lag = (row[:, None] - row + kernel[0] - 1) * size[1] + (column[:, None] - column + kernel[1] - 1)
    pairs = projector.transpose(0, 2, 1, 3).reshape(-1, coils, coils)
    summed = jax.ops.segment_sum(pairs, jnp.asarray(lag.ravel()), num_segments=size[0] * size[1])
    return summed.reshape(*size, coils, coils) / (kernel[0] * kernel[1])


def _waves(index, size: int, reach: int):
    """exp(2 pi i d x / size), d = -(reach-1)..reach-1 along a new last axis, x = index - size//2."""
    lags = jnp.arange(1 - reach, reach)
    turns = (lags * (jnp.asarray(index)[..., None] - size // 2)) % size  # integers: no digits are lost
    return jnp.exp(2j * np.pi * turns / size).astype(jnp.complex64)


def _leading_vectors(covariance_at_row, height: int, width: int, coils: int):
    """Leading eigenvectors (C,H,W) and eigenvalues (H,W) of the (C,C,W) matrices of every row, some rows at a time.

    Power iteration, 16 times on the eighth power of the matrix: an eigenvector whose eigenvalue is 5 % smaller than the
    leading one is left with a share of 0.95^128 = 0.1 %. On a CPU, `eigh` of 32 coils takes far longer than that.
    """

    def unit(array, axes):
        norm = jnp.sqrt(jnp.sum(jnp.abs(array) ** 2, axis=axes, keepdims=True))
        return array / jnp.where(norm > 0, norm, 1)

    def at_row(row):
        covariance = covariance_at_row(row)
        power = covariance
        for _ in range(3):
            power = unit(jnp.einsum("cdx,dex->cex", power, power, precision=_PRECISE), (0, 1))
        # Start from the column of the largest diagonal entry, with a little of the others lest it be orthogonal to the
        # leading eigenvector.
        best = jnp.argmax(jnp.diagonal(power).real, axis=-1)
        share = jnp.where(jnp.arange(coils)[:, None] == best, 1.0, 0.1 * jnp.exp(1j * jnp.arange(coils)[:, None] ** 2))
        start = jnp.sum(power * share, axis=1)
        vector = jax.lax.fori_loop(0, 15, lambda _, v: unit(jnp.sum(power * v, axis=1), 0), unit(start, 0))
        return vector, jnp.sum(vector.conj() * jnp.sum(covariance * vector, axis=1), axis=0).real

    rows = max(1, min(height, _CHUNK // (width * coils**2)))
    vectors, values = jax.lax.map(at_row, jnp.arange(height), batch_size=rows)
    return jnp.moveaxis(vectors, 0, 1), values


def _virtual_coil_phase(maps, acs):
    """Turns the phase of every pixel such that u^H C >= 0, u the leading principal component of the coils."""
    flat = acs.reshape(acs.shape[0], -1)
    component = jnp.linalg.eigh(jnp.matmul(flat, flat.conj().T, precision=_PRECISE))[1][:, -1]
    largest = component[jnp.argmax(jnp.abs(component))]
    component = component * (jnp.conj(largest) / jnp.abs(largest))
    virtual = jnp.einsum("c,chw->hw", component.conj(), maps, precision=_PRECISE)
    size = jnp.abs(virtual)
    return maps * jnp.where(size > 0, jnp.conj(virtual) / jnp.where(size > 0, size, 1), 1)


def _low_resolution(acs, rows, columns, window, shape):
    """(C,H,W) images of the ACS under a Hann window as wide as the block."""

    def hann(inside):
        count = jnp.sum(inside)
        place = jnp.arange(inside.size) - jnp.argmax(inside) + 0.5
        return jnp.where(inside, jnp.sin(np.pi * place / count) ** 2, 0)

    (top, high), (left, wide) = window
    acs = acs * (hann(rows)[:, None] * hann(columns))
    padding = ((0, 0), (top, shape[0] - top - high), (left, shape[1] - left - wide))
    return ifft2c(jnp.pad(acs, padding))


@functools.partial(jax.jit, static_argnames="window")
def _lowres(y, block, crop, *, window):
    acs, rows, columns = _cut(y, block, window)
    images = _low_resolution(acs, rows, columns, window, y.shape[-2:])
    combined = jnp.sqrt(jnp.sum(jnp.abs(images) ** 2, axis=0))
    maps = jnp.where(combined > crop * jnp.max(combined), images / jnp.where(combined > 0, combined, 1), 0)
    return _virtual_coil_phase(maps, acs)


@functools.partial(jax.jit, static_argnames=("window", "size"))
def _walsh(y, block, crop, *, window, size):
    coils, height, width = y.shape
    acs, rows, columns = _cut(y, block, window)
    images = _low_resolution(acs, rows, columns, window, (height, width))
    padded = jnp.pad(images, ((0, 0), (size // 2,) * 2, (size // 2,) * 2))

    def at_row(row):
        strip = jax.lax.dynamic_slice_in_dim(padded, row, size, axis=1)
        products = jnp.einsum("chw,dhw->cdw", strip, strip.conj(), precision=_PRECISE)
        return sum(products[..., shift : shift + width] for shift in range(size))

    vectors, values = _leading_vectors(at_row, height, width, coils)
    return _virtual_coil_phase(jnp.where(values > crop**2 * jnp.max(values), vectors, 0), acs)
