"""Crafted PyTorch files: one clear line, quickly, with no memory of ours in the result and no code run."""

import pickle
import time
import zipfile

import numpy as np
import pytest

from msm.exchange.torch_files import LARGEST_PICKLE, read_state_dict
from msm.infra.errors import UserError
from tests.helpers.checks import message_of
from tests.helpers.torch_files import DICT, old_tensor, plain, state, tensor, write, write_old

VALUES = np.arange(24, dtype=np.float32)
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def rebuilt(storage: bytes, offset: int, size: tuple, stride: tuple) -> bytes:
    """A tensor whose storage is anything."""
    return REBUILD + b"(" + storage + plain(offset) + plain(size) + plain(stride) + b"\x89" + DICT + b"tR"


WHOLE = tensor("0", 24, (6, 4), (4, 1))


@pytest.mark.parametrize(
    ("crafted", "expected"),
    [
        (rebuilt(WHOLE, 0, (24,), (1,)), "a tensor's storage is a _Tensor"),
        (rebuilt(WHOLE, 5, (20,), (1,)), "a tensor's storage is a _Tensor"),  # 5 rows further: it returned the heap
        (rebuilt(plain("0"), 0, (1,), (1,)), "a tensor's storage is a str"),
        (rebuilt(b"ctorch\nFloatStorage\n", 0, (1,), (1,)), "a tensor's storage is a _Kind"),
        (tensor("0", 24, [24], (1,)), "shape, strides or offset are none"),
        (tensor("0", 24, (24, 1), (1,)), "shape, strides or offset are none"),
        (tensor("0", 24, (2.0,), (1,)), "shape, strides or offset are none"),
        (tensor("0", 24, (True,), (1,)), "shape, strides or offset are none"),
        (tensor("0", 24, (2**62, 2**62, 0), (1, 1, 1)), "shape, strides or offset are none"),
        (tensor("0", 24, (1,) * 17, (1,) * 17), "shape, strides or offset are none"),
        (tensor("0", 24, (2, 2), (2**47, 1)), "leaves its 24 stored values"),
        (tensor("0", 24, (1,), (1,), offset=10**30), "shape, strides or offset are none"),
        (tensor("0", 24, (1,), (1,), offset=-1), "shape, strides or offset are none"),
        (tensor("0", 24, (1,), (1,), offset="0"), "shape, strides or offset are none"),
        (tensor("0", 24.0, (24,), (1,)), "unknown storage record"),
        (tensor("0", -24, (24,), (1,)), "unknown storage record"),
        (tensor(0, 24, (24,), (1,)), "unknown storage record"),
        (REBUILD + b")R", "TypeError"),
        (REBUILD + plain(3) + b"R", "the pickle calls a Maker"),
        (plain(3) + b")R", "the pickle calls a int"),
        (plain("x") + b"Q", "unknown storage record"),
        (b"N" + b"(tQ", "unknown storage record"),
        (DICT + plain(3) + b"b", "no plain state dict"),  # a state that a plain table takes and ignores
        (plain((1,)) + plain(3) + b"b", "AttributeError"),
        (b"ccollections\nOrderedDict\n" + plain(([[1, 2, 3]],)) + b"R", "no list of pairs"),
        (b"ccollections\nOrderedDict\n" + plain((7,)) + b"R", "no list of pairs"),
        (b"(" * 50_000, "takes from an empty stack"),
        (b"ccollections\nOrderedDict\n)\x81", "instruction NEWOBJ"),
        (b"\x82\x01", "instruction EXT1"),
        (b"i__main__\nX\n", "instruction INST"),
        (b"2", "instruction DUP"),
    ],
    ids=range(31),
)
def test_crafted_values_are_refused(tmp_path, crafted, expected):
    path = write(tmp_path / "a.pt", state(a=crafted), s0=VALUES)
    message = message_of(read_state_dict, path)
    assert expected in message and message.startswith(f"checkpoint {path}") and len(message) < 600


def test_an_axis_of_one_entry_may_have_any_stride(tmp_path):
    pickled = state(a=tensor("0", 24, (1, 24), (2**40, 1)), none=tensor("0", 24, (0, 3), (10**9, 1)))
    read = read_state_dict(write(tmp_path / "a.pt", pickled, s0=VALUES))
    np.testing.assert_array_equal(read["a"], VALUES[None])
    assert read["none"].shape == (0, 3)


def test_python_2_tables_and_metadata_load(tmp_path):
    pairs = b"](" + b"]" + plain("a") + b"a" + tensor("0", 24, (24,), (1,)) + b"a" + b"e"
    pickled = b"\x80\x02ccollections\nOrderedDict\n(" + pairs + b"tR" + b"}" + plain("_metadata") + DICT + b"sb."
    np.testing.assert_array_equal(read_state_dict(write(tmp_path / "a.pt", pickled, s0=VALUES))["a"], VALUES)


@pytest.mark.parametrize("old", [False, True])
def test_many_views_of_one_storage_are_refused(tmp_path, old):
    make, written = (old_tensor, write_old) if old else (tensor, write)
    storage = np.zeros(2**20, np.float32)
    views = {f"v{i}": make("0", storage.size, (storage.size,), (1,)) for i in range(800)}
    begin = time.process_time()
    message = message_of(read_state_dict, written(tmp_path / "a.pt", state(**views), s0=storage))
    assert "views of few values" in message and time.process_time() - begin < 10
    tied = {f"v{i}": make("0", storage.size, (storage.size,), (1,)) for i in range(3)}
    assert len(read_state_dict(written(tmp_path / "a.pt", state(**tied), s0=storage))) == 3


def test_small_memory_for_large_memo_places(tmp_path):
    """Python's own unpickler makes room for a memo of 2^32 places where one is named."""
    pickled = b"\x80\x02" + plain(1) + b"r" + (2**32 - 1).to_bytes(4, "little") + b"0."
    begin = time.process_time()
    assert "instruction POP" in message_of(read_state_dict, write(tmp_path / "a.pt", pickled))
    last = (2**32 - 1).to_bytes(4, "little")
    far = b"\x80\x02" + DICT + b"r" + last + b"j" + last + b"."
    assert read_state_dict(write(tmp_path / "a.pt", far)) == {}
    assert "KeyError: 7" in message_of(read_state_dict, write(tmp_path / "a.pt", b"\x80\x02h\x07."))
    assert time.process_time() - begin < 5


def test_deep_nesting_is_no_crash(tmp_path):
    """Hashing or printing a tuple of so many levels would end the process."""
    deep = b")" + b"\x85" * 200_000
    for pickled in (deep + b".", DICT + deep + plain(1) + b"s.", deep + b"Q.", REBUILD + deep + b"R."):
        message = message_of(read_state_dict, write(tmp_path / "a.pt", b"\x80\x02" + pickled, s0=VALUES))
        assert "checkpoint" in message and len(message) < 600


def test_too_many_instructions_are_refused_in_time(tmp_path):
    begin = time.process_time()
    path = write(tmp_path / "a.pt", b"\x80\x02" + b"N" * 1_100_000 + b".")
    assert "more than 1000000 instructions" in message_of(read_state_dict, path)
    assert time.process_time() - begin < 30


def test_entries_that_share_their_bytes_are_counted(tmp_path):
    """A central directory may name the same bytes many times over."""
    path = tmp_path / "a.pt"
    storage = np.zeros(2**16, np.float32)
    pickled = state(**{f"v{i}": tensor(str(i), storage.size, (4,), (1,)) for i in range(40)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", pickled)
        archive.writestr("net/data/0", storage.tobytes())
        for i in range(1, 40):
            entry = zipfile.ZipInfo(f"net/data/{i}")
            first = archive.getinfo("net/data/0")
            for name in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(entry, name, getattr(first, name))
            archive.filelist.append(entry)
            archive.NameToInfo[entry.filename] = entry
    assert path.stat().st_size < 2 * storage.nbytes
    message = message_of(read_state_dict, path)
    assert "its storages have" in message or "overlap" in message.lower() or "damaged" in message


def test_a_huge_length_in_the_old_format_allocates_nothing(tmp_path):
    pickled = b"\x80\x02X" + (2**32 - 2).to_bytes(4, "little") + b"abc."
    assert "no readable PyTorch file" in message_of(read_state_dict, write_old(tmp_path / "a.pth", pickled))
    long = b"\x80\x02\x8d" + (2**62).to_bytes(8, "little") + b"abc."
    assert "no readable PyTorch file" in message_of(read_state_dict, write_old(tmp_path / "a.pth", long))


def test_one_storage_of_two_types_is_refused_in_the_old_format(tmp_path):
    pickled = state(a=old_tensor("0", 24, (24,), (1,)), b=old_tensor("0", 12, (12,), (1,), storage="DoubleStorage"))
    assert "unknown storage record" in message_of(read_state_dict, write_old(tmp_path / "a.pth", pickled, s0=VALUES))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_seeded_changes_end_in_one_line_or_in_tensors(tmp_path, old, seed):
    make, written = (old_tensor, write_old) if old else (tensor, write)
    pickled = state(a=make("0", 24, (2, 3, 4), (12, 4, 1)), b=make("1", 24, (24,), (1,), storage="HalfStorage"))
    storages = {"s0": VALUES, "s1": VALUES.astype(np.float16)}
    path, random = tmp_path / "a.pt", np.random.default_rng(seed)
    whole = written(path, pickled, **storages).read_bytes()
    refused = 0
    for case in range(250):
        data = bytearray(whole if old or case % 2 else pickled)  # of the zip also the pickle alone, its CRC being right
        for place in random.integers(0, len(data), random.integers(1, 5)):
            data[place] = random.integers(256)
        data = data[: random.integers(1, len(data))] if case % 7 == 0 else data
        if old or case % 2:
            path.write_bytes(data)
        else:
            write(path, bytes(data), **storages)
        try:
            for value in read_state_dict(path).values():
                assert value.dtype == np.float32 and value.size <= 48
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_pickles_of_python_are_still_pickles(tmp_path):
    """Protocols 0 to 5 of plain values read as Python's own unpickler reads them."""
    import io

    from msm.exchange.plain_pickle import read_pickle

    value = {"a": [1, -5, 2**40, 10**30, 2.5, None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], "é": b"x"}
    value["again"] = value["a"]
    for protocol in range(3, 6):
        assert read_pickle(io.BytesIO(pickle.dumps(value, protocol)), _refuse) == value
    del value["é"]
    for protocol in range(3):
        assert read_pickle(io.BytesIO(pickle.dumps(value, protocol)), _refuse) == value
    assert LARGEST_PICKLE == 64 * 2**20


def _refuse(module, name):
    raise UserError(f"{module}.{name}")
