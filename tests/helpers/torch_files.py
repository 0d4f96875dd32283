"""PyTorch files written by hand, byte for byte as torch.save does, for tests that must not need PyTorch."""

import pickle
import zipfile
from pathlib import Path

import numpy as np

DICT = b"ccollections\nOrderedDict\n)R"


def plain(value) -> bytes:
    """Pickle opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(key, count, size, stride, offset=0, storage="FloatStorage") -> bytes:
    """Opcodes that push a tensor the way torch.save writes it."""
    pid = b"(" + plain("storage") + f"ctorch\n{storage}\n".encode() + plain(key) + plain("cpu") + plain(count) + b"tQ"
    arguments = b"(" + pid + plain(offset) + plain(size) + plain(stride) + b"\x89" + DICT + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def state(**tensors: bytes) -> bytes:
    """A complete pickle of an OrderedDict; '__' in a name stands for '.'."""
    items = b"".join(plain(name.replace("__", ".")) + opcodes for name, opcodes in tensors.items())
    return b"\x80\x02" + DICT + b"(" + items + b"u."


def write(path: Path, pickled: bytes, **storages: np.ndarray) -> Path:
    """Writes a .pt file; storages are named s0, s1, ..."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", pickled)
        archive.writestr("net/byteorder", "little")
        for name, values in storages.items():
            archive.writestr(f"net/data/{name[1:]}", values.tobytes())
        archive.writestr("net/version", "3\n")
    return path


def old_tensor(key, count, size, stride, storage="FloatStorage") -> bytes:
    """As `tensor`, the way torch.save wrote it before PyTorch 1.6: a storage has a sixth entry, its view."""
    return tensor(key, count, size, stride, storage=storage).replace(plain(count) + b"tQ", plain(count) + b"NtQ")


def write_old(path: Path, pickled: bytes, little=True, **storages: np.ndarray) -> Path:
    """Writes a file in the format before PyTorch 1.6; storages are named s0, s1, ..."""
    heads = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": little, "type_sizes": {}}]
    parts = [pickle.dumps(head, 2) for head in heads] + [pickled, pickle.dumps([name[1:] for name in storages], 2)]
    parts += [values.size.to_bytes(8, "little") + values.tobytes() for values in storages.values()]
    path.write_bytes(b"".join(parts))
    return path


def save_state_dict(path: Path, arrays: dict[str, np.ndarray], old: bool = False) -> Path:
    """Writes named float32 arrays as torch.save(state_dict, path) does; `old`: as before PyTorch 1.6."""
    make, pickled, storages = old_tensor if old else tensor, {}, {}
    for index, (name, array) in enumerate(arrays.items()):
        stride = tuple(step // 4 for step in np.ascontiguousarray(array, np.float32).strides)
        pickled[name.replace(".", "__")] = make(str(index), array.size, array.shape, stride)
        storages[f"s{index}"] = np.ascontiguousarray(array, np.float32)
    return (write_old if old else write)(path, state(**pickled), **storages)
