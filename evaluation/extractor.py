"""Image features for distances: the built-in set, a file with a compiled function, or features computed elsewhere.

A file is data to this program, never code: an extractor is a StableHLO program of `jax.export`, a closed set of array
operations, and one that calls out of it (a custom call: library routines, Python callbacks by address) is refused.
"""

import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax import export

from msm.evaluation.features import small_features
from msm.infra.errors import UserError

_CALL = re.compile(r"stablehlo\.custom_call @(shape_assertion|Sharding)\(")  # what jax.export adds by itself
# What the reader of the format raises on bytes that are not of it.
_UNREADABLE = (ValueError, TypeError, AttributeError, KeyError, IndexError, struct.error, OverflowError, AssertionError)


def get_extractor(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns features(images (N,...)) -> (N,D) float64: 'small', or the function of a file.

    Raises UserError: see `load_extractor`.
    """
    return small_features if name == "small" else load_extractor(name)


def load_extractor(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the feature function of a file written by `jax.export.export(...)(...).serialize()`.

    The file's function takes images (B,H,W,C) float32, C = 1 and magnitudes for MRI, C = 3 and values in [-1,1] for
    colour images, and returns (B,D) float32; B may be fixed or symbolic, H and W may be symbolic.

    Raises:
      UserError: the file is missing, is no such program, was exported for other devices, has other arguments or calls
        out of StableHLO; or, when called, its function does not take images of this size.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"sampling.features {path!r} cannot be read ({error.strerror}): give 'small' or a file"
        ) from error
    try:
        program = export.deserialize(bytearray(content))
        text = program.mlir_module()
    except ImportError as error:
        raise UserError(
            f"sampling.features {path!r} needs the package flatbuffers ({error}): pip install flatbuffers"
        ) from error
    except (*_UNREADABLE, RuntimeError) as error:
        raise UserError(
            f"sampling.features {path!r} is no program of jax.export ({type(error).__name__}): write it with "
            "jax.export.export(jax.jit(function))(shape).serialize()"
        ) from error
    if text.count("custom_call") != len(_CALL.findall(text)):
        raise UserError(
            f"sampling.features {path!r} calls out of StableHLO (custom_call): this program never runs such"
        )
    here = export.default_export_platform()
    if here not in program.platforms:
        raise UserError(
            f"sampling.features {path!r} was exported for {', '.join(program.platforms)}, this is a {here}: "
            f"export it with platforms=({here!r},)"
        )
    arguments, results = program.in_avals, program.out_avals
    if len(arguments) != 1 or len(results) != 1 or len(arguments[0].shape) != 4 or len(results[0].shape) != 2:
        raise UserError(
            f"sampling.features {path!r} must take images (B,H,W,C) and return (B,D): export another function"
        )
    batch = arguments[0].shape[0]
    call = jax.jit(program.call)

    def features(images: np.ndarray) -> np.ndarray:
        shown = (np.abs(images)[..., None] if np.iscomplexobj(images) else images).astype(np.float32)
        fits = zip(arguments[0].shape[1:], shown.shape[1:], strict=True)
        if any(isinstance(size, int) and size != found for size, found in fits):
            raise UserError(
                f"sampling.features {path!r} takes images of {arguments[0].shape[1:]}, these are {shown.shape[1:]}: "
                "export it for this size"
            )
        size = batch if isinstance(batch, int) else len(shown)
        found = []
        for start in range(0, len(shown), size):
            part = shown[start : start + size]
            padded = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
            found.append(np.asarray(call(padded))[: len(part)])
        return np.concatenate(found).astype(np.float64)

    return features


def load_features(path: str, setting: str) -> np.ndarray:
    """Returns the array 'features' (N,D) of an .npz, as float64. Raises UserError if there is none."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return np.asarray(stored["features"], np.float64)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        # Of a file of another kind numpy says that it could be loaded unsafely.
        reason = "it is of another kind" if "pickle" in str(error) else error
        raise UserError(
            f"{setting} {path!r} cannot be read ({reason}): it must be an .npz with the array 'features' (images, D)"
        ) from error


def load_digest(path: str, setting: str) -> str:
    """Returns the string 'digest' of an .npz of features: which images they are of. Raises UserError if there is none.

    It is that of the images.npz (see `infra.rounds.join`) from which the features were computed.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return str(stored["digest"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{setting} {path!r} does not tell of which images it is ({error}): store the 'digest' of their images.npz "
            "beside 'features', numpy.savez(path, features=..., digest=images['digest'])"
        ) from error
