"""PyTorch checkpoints are read without PyTorch, exactly, and run no code. The files are written here by hand."""

import pickle
import pickletools
import re
import zipfile

import jax
import numpy as np
import pytest

from msm.configs.default import get_config
from msm.exchange.torch_files import read_state_dict, write_state_dict
from msm.exchange.torch_import import drop_variances, params_to_state_dict, state_dict_to_params
from msm.models.init import init_params, param_shapes
from msm.models.registry import get_model
from tests.helpers.checks import message_of
from tests.helpers.torch_files import DICT, old_tensor, plain, state, tensor, write, write_old

# Of the opcodes that torch.load(weights_only=True) knows, those that a file of tensors needs.
WEIGHTS_ONLY = {
    "PROTO", "GLOBAL", "EMPTY_TUPLE", "REDUCE", "MARK", "BINUNICODE", "BINPUT", "BININT", "BININT1", "BININT2", "TUPLE",
    "TUPLE1", "TUPLE2", "TUPLE3", "BINPERSID", "NEWFALSE", "SETITEMS", "STOP",
}  # fmt: skip

VALUES = np.arange(24, dtype=np.float32) * 0.37 - 3


def test_strides_offsets_shared_storage_and_module_prefix(tmp_path):
    pickled = state(
        module__whole=tensor("0", 24, (2, 3, 4), (12, 4, 1)),
        module__transposed=tensor("0", 24, (4, 6), (1, 4)),
        tail=tensor("0", 24, (3,), (2,), offset=18),
        scalar=tensor("0", 24, (), (), offset=5),
        empty=tensor("0", 24, (0, 3), (3, 1)),
    )
    read = read_state_dict(write(tmp_path / "a.pt", pickled, s0=VALUES))
    assert list(read) == ["whole", "transposed", "tail", "scalar", "empty"]
    np.testing.assert_array_equal(read["whole"], VALUES.reshape(2, 3, 4))
    np.testing.assert_array_equal(read["transposed"], VALUES.reshape(6, 4).T)
    np.testing.assert_array_equal(read["tail"], VALUES[[18, 20, 22]])
    np.testing.assert_array_equal(read["scalar"], VALUES[5])
    assert read["empty"].shape == (0, 3)


def test_half_precision_types(tmp_path):
    bits = (VALUES.view(np.uint32) >> 16).astype(np.uint16)
    pickled = state(
        f16=tensor("0", 24, (24,), (1,), storage="HalfStorage"),
        bf16=tensor("1", 24, (24,), (1,), storage="BFloat16Storage"),
    )
    read = read_state_dict(write(tmp_path / "a.pt", pickled, s0=VALUES.astype(np.float16), s1=bits))
    assert read["f16"].dtype == read["bf16"].dtype == np.float32
    np.testing.assert_array_equal(read["f16"], VALUES.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(read["bf16"], (VALUES.view(np.uint32) & 0xFFFF0000).view(np.float32))


def test_the_format_before_zip(tmp_path):
    pickled = state(
        module__whole=old_tensor("0", 24, (2, 3, 4), (12, 4, 1)),
        transposed=old_tensor("0", 24, (4, 6), (1, 4)),
        half=old_tensor("1", 24, (24,), (1,), storage="HalfStorage"),
    )
    storages = {"s0": VALUES, "s1": VALUES.astype(np.float16)}
    path = write_old(tmp_path / "a.pth", pickled, **storages)
    read = read_state_dict(path)
    assert list(read) == ["whole", "transposed", "half"]
    np.testing.assert_array_equal(read["whole"], VALUES.reshape(2, 3, 4))
    np.testing.assert_array_equal(read["transposed"], VALUES.reshape(6, 4).T)
    np.testing.assert_array_equal(read["half"], VALUES.astype(np.float16).astype(np.float32))
    path.write_bytes(path.read_bytes()[:-1])
    assert "truncated?" in message_of(read_state_dict, path)
    path.write_bytes(path.read_bytes()[:40])
    assert "a.pth is no readable PyTorch file" in message_of(read_state_dict, path)
    assert "big-endian" in message_of(read_state_dict, write_old(path, pickled, little=False, **storages))
    wrong = state(a=old_tensor("0", 10**9, (24,), (1,)))  # more entries than the file has bytes: nothing is allocated
    assert "unknown storage record" in message_of(read_state_dict, write_old(path, wrong, s0=VALUES))


def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path):
    trace = tmp_path / "ran"
    for module, name in (("os", "system"), ("builtins", "eval"), ("posix", "system"), ("torch", "load")):
        pickled = b"\x80\x02" + f"c{module}\n{name}\n".encode() + plain((f"touch {trace}",)) + b"R."
        for written in (write(tmp_path / "bad.pt", pickled), write_old(tmp_path / "bad.pt", pickled)):
            message = message_of(read_state_dict, written)
            assert f"{module}.{name}" in message and "bad.pt" in message
    assert not trace.exists()


def entry(**values: bytes) -> bytes:
    """Opcodes that push a dict; '__' in a name stands for '.'."""
    return DICT + b"(" + b"".join(plain(name.replace("__", ".")) + value for name, value in values.items()) + b"u"


def test_parameters_as_the_authors_trainer_stores_them(tmp_path):
    """Their trainer puts torch.nn.Parameter objects into the state dict, and the device is a GPU's."""
    parameter = b"ctorch._utils\n_rebuild_parameter\n" + tensor("0", 24, (2, 12), (12, 1)).replace(
        plain("cpu"), plain("cuda:0")
    )
    pickled = state(a=parameter + b"\x88" + DICT + b"\x87R")
    read = read_state_dict(write(tmp_path / "ema_0.9999_050000.pt", pickled, s0=VALUES))
    np.testing.assert_array_equal(read["a"], VALUES.reshape(2, 12))


def test_one_state_dict_of_several(tmp_path):
    pickled = state(
        model=entry(a=tensor("0", 24, (24,), (1,))),
        ema=entry(module__a=tensor("0", 24, (3,), (1,)), count=tensor("1", 1, (), (), storage="LongStorage")),
        step=plain(1000),
    )
    path = write(tmp_path / "a.pt", pickled, s0=VALUES, s1=np.array([7]))
    read = read_state_dict(path, "ema")
    np.testing.assert_array_equal(read["a"], VALUES[:3])
    assert read["count"] == 7
    np.testing.assert_array_equal(read_state_dict(path, "model")["a"], VALUES)
    assert "choose one of its entries: model, ema" in message_of(read_state_dict, path)
    assert "has no entry 'avg' (found: model, ema, step)" in message_of(read_state_dict, path, "avg")
    assert "found: int" in message_of(read_state_dict, path, "step")


def test_written_files_are_read_back_exactly_and_hold_what_pytorch_writes(tmp_path):
    arrays = {
        "a.weight": VALUES.reshape(2, 3, 4),
        "turned": VALUES.reshape(4, 6).T,
        "scalar": np.float32(2.5),
        "empty": np.zeros((3, 0), np.float32),
    }
    write_state_dict(tmp_path / "a.pt", arrays)
    read = read_state_dict(tmp_path / "a.pt")
    assert list(read) == list(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(read[name], value, strict=True)
    write_state_dict(tmp_path / "b.pt", arrays)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        opcodes = {(code.name, arg) for code, arg, _ in pickletools.genops(archive.read("archive/data.pkl"))}
    assert {arg for name, arg in opcodes if name == "GLOBAL"} == {
        "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage",
    }  # fmt: skip
    assert {name for name, _ in opcodes} <= WEIGHTS_ONLY


def test_pytorch_itself_loads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch, which is no dependency, is not installed")
    arrays = {"a.weight": VALUES.reshape(2, 3, 4), "scalar": np.float32(2.5)}
    write_state_dict(tmp_path / "a.pt", arrays)
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)
    assert {name: value.tolist() for name, value in loaded.items()} == {n: v.tolist() for n, v in arrays.items()}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_file(tmp_path, share):
    path = write(tmp_path / "a.pt", state(a=tensor("0", 24, (24,), (1,))), s0=VALUES)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "a.pt is truncated" in message_of(read_state_dict, path)


def test_flipped_bit(tmp_path):
    path = write(tmp_path / "a.pt", state(a=tensor("0", 24, (24,), (1,))), s0=VALUES)
    content = path.read_bytes()
    at = content.index(VALUES.tobytes()) + 7
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert "damaged" in message_of(read_state_dict, path)


@pytest.mark.parametrize(
    ("pickled", "expected"),
    [
        (state(a=tensor("0", 30, (30,), (1,))), "96 bytes instead of 120"),
        (state(a=tensor("0", 24, (5, 5), (5, 1))), "leaves its 24 stored values"),
        (state(a=tensor("0", 24, (2,), (1,), offset=23)), "leaves its 24 stored values"),
        (state(a=tensor("0", 24, (2,), (-1,), offset=3)), "leaves its 24 stored values"),
        (state(a=tensor("0", 24, (10**9,), (0,))), "leaves its 24 stored values"),
        (state(a=tensor("7", 24, (24,), (1,))), "net/data/7"),
        (state(a=tensor("../data/0", 24, (24,), (1,))), "unknown storage record"),
        (state(a=tensor("0", 24, (24,), (1,), storage="QInt8Storage")), "torch.QInt8Storage"),
        (state(step=plain(3), a=tensor("0", 24, (24,), (1,))), "no plain state dict"),
        (plain([1, 2]) + b".", "no plain state dict"),
        (state(a=tensor("0", 24, (24,), (1,)))[:-20], "no readable PyTorch file"),
        (b"\x80\x02K\x01.garbage", "no plain state dict"),
        (b"\xff\xfe", "no readable PyTorch file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_contents(tmp_path, pickled, expected):
    assert expected in message_of(read_state_dict, write(tmp_path / "a.pt", pickled, s0=VALUES))


@pytest.mark.parametrize("bomb", ["pickle", "storage", "compressed storage"])
def test_small_files_of_huge_contents_are_refused_before_they_are_unpacked(tmp_path, monkeypatch, bomb):
    """65 MB of zeros are 65 kB of zip file."""
    huge, path = 65 * 2**20, tmp_path / "a.pt"
    count = huge // 4 if bomb == "compressed storage" else 24
    pickled = state(a=tensor("0", count, (24,), (1,)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", bytes(huge) if bomb == "pickle" else pickled)
        archive.writestr("net/data/0", bytes(huge))
    assert path.stat().st_size < 200_000  # two entries at most
    read, most = zipfile.ZipExtFile.read, []

    def watched(self, n=-1):
        content = read(self, n)
        most.append(len(content))
        return content

    monkeypatch.setattr(zipfile.ZipExtFile, "read", watched)
    told = {"pickle": "its data.pkl has 68157440 bytes", "storage": "has 68157440 bytes instead of 96"}
    assert told.get(bomb, "storage 0 is compressed") in message_of(read_state_dict, path)
    assert sum(most) < 10_000


def test_other_files(tmp_path):
    assert "does not exist" in message_of(read_state_dict, tmp_path / "none.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"a": 1}))
    assert "no file that torch.save wrote" in message_of(read_state_dict, tmp_path / "old.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not one that torch.save wrote" in message_of(read_state_dict, tmp_path / "other.pt")


@pytest.fixture(scope="module")
def network():
    """(model config, parameters) of a toy network that has every kind of layer."""
    config = get_config()
    config.data.image_size = 16
    config.model.update(num_channels=8, channel_mult=(1, 2), attention_resolutions=(8,), num_heads=2, patch_size=1)
    model = get_model(config, 2)
    return config.model, init_params(model, 0, (16, 16, 2)), param_shapes(model, (16, 16, 2))


def test_names_and_shapes_are_the_references(network):
    _, params, _ = network
    shapes = {name: value.shape for name, value in params_to_state_dict(params).items()}
    expected = {
        "time_embed.0.weight": (32, 8),
        "time_embed.2.bias": (32,),
        "input_blocks.0.0.weight": (8, 2, 3, 3),
        "input_blocks.1.0.in_layers.0.weight": (8,),
        "input_blocks.1.0.in_layers.2.weight": (8, 8, 3, 3),
        "input_blocks.1.0.emb_layers.1.weight": (16, 32),
        "input_blocks.1.0.out_layers.0.bias": (8,),
        "input_blocks.1.0.out_layers.3.weight": (8, 8, 3, 3),
        "input_blocks.2.0.in_layers.2.bias": (8,),
        "input_blocks.3.0.skip_connection.weight": (16, 8, 1, 1),
        "input_blocks.3.1.norm.bias": (16,),
        "input_blocks.3.1.qkv.weight": (48, 16, 1),
        "input_blocks.3.1.proj_out.weight": (16, 16, 1),
        "middle_block.1.qkv.bias": (48,),
        "output_blocks.1.2.in_layers.2.weight": (16, 16, 3, 3),
        "output_blocks.3.0.skip_connection.bias": (8,),
        "out.0.weight": (8,),
        "out.2.weight": (2, 8, 3, 3),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert len(shapes) == len(jax.tree.leaves(params))


def test_round_trip_is_exact(network):
    config, params, template = network
    back = state_dict_to_params(params_to_state_dict(params), config, template)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert all(leaf.dtype == np.float32 and leaf.flags.c_contiguous for leaf in jax.tree.leaves(back))


def test_every_misfit_is_in_one_message(network):
    config, params, template = network
    state_dict = params_to_state_dict(params)
    del state_dict["middle_block.1.norm.weight"], state_dict["out.2.bias"]
    state_dict["label_emb.weight"] = np.zeros((10, 32), np.float32)
    state_dict["out.2.weight"] = np.zeros((3, 8, 3, 3), np.float32)
    message = message_of(state_dict_to_params, state_dict, config, template)
    for part in (
        "missing middle_block.1.norm.weight",
        "missing out.2.bias",
        "unexpected label_emb.weight",
        "out.2.weight has shape (3, 8, 3, 3), the network's is (2, 8, 3, 3)",
        "4 differences",
        "model.num_channels=8",
        "saved with num_channels=8",
    ):
        assert part in message


def test_a_wrong_network_is_told_once_with_what_the_file_holds(network):
    _, params, _ = network
    other = get_config()
    other.data.image_size = 16
    other.model.update(num_channels=12, channel_mult=(1,), attention_resolutions=(), num_heads=1, patch_size=1)
    template = param_shapes(get_model(other, 2), (16, 16, 2))
    message = message_of(state_dict_to_params, params_to_state_dict(params), other.model, template)
    assert "model.num_channels=12" in message
    assert "saved with num_channels=8, 2 channels in and 2 out" in message
    assert re.search(r"(\d+) differences: ", message)[1] == str(20 + int(re.search(r"and (\d+) more", message)[1]))
    assert len(message) < 3000
    assert "holds no ADM U-Net" in message_of(state_dict_to_params, {"a": np.zeros(3)}, other.model, template)


def test_predicted_variances_are_named_and_dropped(network):
    config, params, template = network
    state_dict = params_to_state_dict(params)
    both = {**state_dict, "out.2.bias": np.array([1, 2, 3, 4], np.float32)}
    both["out.2.weight"] = np.concatenate([state_dict["out.2.weight"], np.ones_like(state_dict["out.2.weight"])])
    assert "learn_sigma" in message_of(state_dict_to_params, both, config, template)
    kept = state_dict_to_params(drop_variances(both), config, template)
    np.testing.assert_array_equal(kept["out_conv"]["bias"], [1, 2])
    np.testing.assert_array_equal(kept["out_conv"]["kernel"], params["out_conv"]["kernel"])
    both["out.2.bias"] = np.zeros(3)
    assert "out.2.bias (3,)" in message_of(drop_variances, both)
    assert "no out.2.weight" in message_of(drop_variances, {})


def test_transposed_square_kernels_are_told_apart(network):
    """A linear map's and a convolution's input and output must not be swapped: the values say so, shapes cannot."""
    config, params, template = network
    state_dict = params_to_state_dict(params)
    mapped = state_dict_to_params(state_dict, config, template)
    weight = state_dict["middle_block.0.in_layers.2.weight"]
    np.testing.assert_array_equal(mapped["middle_block_0"]["in_conv"]["kernel"][2, 0, 5, 7], weight[7, 5, 2, 0])
    weight = state_dict["time_embed.2.weight"]
    np.testing.assert_array_equal(mapped["time_embed_2"]["kernel"][3, 4], weight[4, 3])
