"""Crafted Flax checkpoints (msgpack): arrays of numbers or one clear line, whatever the bytes are."""

import flax.serialization
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from msm.exchange.flax_import import read_flax_checkpoint
from msm.infra.errors import UserError
from tests.helpers.checks import message_of

TREE = {"params_ema": {"Conv_0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}, "step": 7}


def write(path, tree) -> str:
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    return str(path)


def test_numbers_of_every_kind_are_float32(tmp_path):
    kinds = {
        "a": np.arange(3, dtype=np.float64), "b": np.arange(3), "c": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
        "d": np.arange(3, dtype=np.uint8), "e": np.full(3, 1e300),
    }  # fmt: skip
    arrays, step = read_flax_checkpoint(write(tmp_path / "c", {"params_ema": kinds, "step": np.int32(5)}))
    assert step == 5 and all(value.dtype == np.float32 for value in arrays.values())
    np.testing.assert_array_equal(arrays["c"], [0, 1, 2])
    assert np.isinf(arrays["e"]).all()


@pytest.mark.parametrize(
    "step", ["many", b"x", 2.5, -1, np.arange(2), np.float32(np.nan), None, {"a": 1}, [1, 2], 2**63, "1" * 10_000]
)
def test_a_step_that_is_none_is_told(tmp_path, step):
    message = message_of(read_flax_checkpoint, write(tmp_path / "c", TREE | {"step": step}))
    assert "not a number of training steps" in message and len(message) < 400


@pytest.mark.parametrize("leaf", ["text", np.arange(2) * 1j, np.array([True]), 3, None, [1], {}, "x" * 9999])
def test_a_leaf_that_is_no_array_of_numbers_is_told(tmp_path, leaf):
    tree = {"params_ema": {"a": leaf, "b": np.zeros(1)}}
    if isinstance(leaf, dict):
        assert set(read_flax_checkpoint(write(tmp_path / "c", tree))[0]) == {"b"}
        return
    assert "no tree of arrays ('a' is none)" in message_of(read_flax_checkpoint, write(tmp_path / "c", tree))


def test_names_that_are_no_text_are_names(tmp_path):
    path = tmp_path / "c"
    array = msgpack.ExtType(1, msgpack.packb(((2,), "float32", np.zeros(2, np.float32).tobytes())))
    path.write_bytes(msgpack.packb({"params_ema": {3: array, "b": {None: array}}, "step": 1}))
    assert set(read_flax_checkpoint(path)[0]) == {"3", "b/None"}


@pytest.mark.parametrize(
    "inside",
    [
        ((2,), "O", b"0" * 16), ((2,), "V0", b""), ((2**40, 2**40), "float32", b""), ((-1, -1), "float32", b"0" * 8),
        ((2,), "f4,(1000000000,)f8", b"0" * 8), (2, "float32", b"0" * 16), ((2,), "float32"), "x",
        (("a",), "float32", b""), ((1,), "bytes8", b"0"), ((1,), "<U2", b"0"),
    ],
)  # fmt: skip
def test_arrays_that_are_none_are_told(tmp_path, inside):
    (tmp_path / "c").write_bytes(msgpack.packb({"params_ema": {"a": msgpack.ExtType(1, msgpack.packb(inside))}}))
    assert "no readable Flax file" in message_of(read_flax_checkpoint, tmp_path / "c")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x91" * 100_000 + b"\xc0", b"\x81\xa1a" * 2000 + b"\xc0", b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x81\x91\x01\x02",
        b"\x82\xd9\x1e__msgpack_chunked_array__\x00\xa5shape\xc0\x01",
    ],
)  # fmt: skip
def test_bytes_that_are_no_checkpoint_are_told(tmp_path, data):
    (tmp_path / "c").write_bytes(data)
    assert str(tmp_path / "c") in message_of(read_flax_checkpoint, tmp_path / "c")


@pytest.mark.parametrize("seed", range(3))
def test_seeded_changes_end_in_one_line_or_in_arrays(tmp_path, seed):
    path, random = tmp_path / "c", np.random.default_rng(seed)
    write(path, TREE)
    whole = path.read_bytes()
    refused = 0
    for case in range(300):
        data = bytearray(whole)
        for place in random.integers(0, len(data), random.integers(1, 5)):
            data[place] = random.integers(256)
        path.write_bytes(data[: random.integers(len(data))] if case % 5 == 0 else data)
        try:
            arrays, step = read_flax_checkpoint(path)
            assert step >= 0 and all(value.dtype == np.float32 for value in arrays.values())
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 800
    assert refused > 50
