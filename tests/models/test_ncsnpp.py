"""NCSN++: every block and the whole network against a plain re-derivation, and the import of published checkpoints."""

import jax
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict

from msm.configs.default import get_config
from msm.exchange import flax_import
from msm.experiment import build
from msm.infra.checkpoints import load_ema_params
from msm.models import ncsnpp_layers
from msm.models.init import init_params, param_shapes
from msm.models.ncsnpp import NCSNpp
from msm.models.registry import get_model
from msm.tools.import_flax_checkpoint import import_checkpoint
from tests.helpers import plain_ncsnpp as plain
from tests.helpers.checks import message_of

RNG = np.random.default_rng(0)


def random(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def randomised(tree):
    """Random values of a parameter tree's shapes, small enough for activations of order 1."""
    return jax.tree.map(lambda leaf: 0.3 * random(*leaf.shape), tree)


def small(**changes) -> NCSNpp:
    settings = {"channels": 2, "num_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": (1,)}
    return NCSNpp(**{**settings, **changes})


def nested_names(model, params):
    """Our parameters under the published names and in their layouts, nested as a checkpoint has them."""
    found = {}
    for path, value in flatten_dict(params).items():
        names = flax_import.published_names(model, path)
        pointwise = path[-2] == "skip" or (path[0].endswith("_input") and value.ndim == 2)
        for name, part in zip(names, np.split(np.asarray(value), len(names), axis=-1), strict=True):
            found[name] = part[None, None] if pointwise and path[-1] == "kernel" else part
    return unflatten_dict(found, sep="/")


def test_fir_resampling_is_upfirdn():
    x = random(2, 6, 4, 3)
    np.testing.assert_allclose(ncsnpp_layers.fir_down2(x), plain.down2(x, True), atol=1e-6)
    np.testing.assert_allclose(ncsnpp_layers.fir_up2(x), plain.up2(x, True), atol=1e-6)
    constant = np.ones((1, 8, 8, 1), np.float32)
    np.testing.assert_allclose(ncsnpp_layers.fir_up2(constant)[:, 2:-2, 2:-2], 1, atol=1e-6)


@pytest.mark.parametrize(("resample", "expected"), [("down", plain.conv_down2), ("up", plain.conv_up2)])
def test_fused_convolutions_resample_as_published(resample, expected):
    x, p = random(2, 6, 4, 3), {"weight": random(3, 3, 3, 5), "bias": random(5)}
    layer = ncsnpp_layers.FIRConv(5, resample)
    out = layer.apply({"params": {"kernel": p["weight"], "bias": p["bias"]}}, x)
    np.testing.assert_allclose(out, expected(x, p), atol=1e-5)


def test_embeddings():
    sigma, frequencies = np.array([0.01, 1.3, 50.0], np.float32), random(8)
    out = ncsnpp_layers.FourierEmbedding(8).apply({"params": {"frequencies": frequencies}}, sigma)
    np.testing.assert_allclose(out, plain.fourier(sigma, frequencies), atol=1e-4)
    t = np.array([0.0, 17.5, 999.0], np.float32)
    np.testing.assert_allclose(ncsnpp_layers.positional_embedding(t, 16), plain.positional(t, 16), atol=2e-4)


@pytest.mark.parametrize("resample", ["", "down", "up"])
@pytest.mark.parametrize("fir", [True, False])
def test_residual_block(resample, fir):
    x, embedding = random(2, 4, 4, 8), random(2, 6)
    for features in (8, 12) if fir else (8,):
        block = ncsnpp_layers.ResBlock(features, resample, fir, fir)
        p = randomised(jax.eval_shape(block.init, jax.random.key(0), x, embedding)["params"])
        theirs = {name: p[ours] for ours, name in flax_import.RES_BLOCK.items() if ours in p}
        if "Conv_2" in theirs:
            theirs["Conv_2"] = {"kernel": p["skip"]["kernel"][None, None], "bias": p["skip"]["bias"]}
        assert ("Conv_2" in theirs) == (features != 8 or resample != "")
        expected = plain.res_block(x, embedding, theirs, resample, fir, fir)
        out = jax.jit(lambda p, block=block: block.apply({"params": p}, x, embedding))(p)
        np.testing.assert_allclose(out, expected, atol=1e-4)


def test_attention():
    x, block = random(2, 4, 3, 8), ncsnpp_layers.AttentionBlock()
    p = randomised(jax.eval_shape(block.init, jax.random.key(0), x)["params"])
    theirs = {"GroupNorm_0": p["norm"], "NIN_3": {"W": p["proj_out"]["kernel"], "b": p["proj_out"]["bias"]}}
    for i in range(3):
        part = slice(8 * i, 8 * i + 8)
        theirs[f"NIN_{i}"] = {"W": p["qkv"]["kernel"][:, part], "b": p["qkv"]["bias"][part]}
    np.testing.assert_allclose(block.apply({"params": p}, x), plain.attention(x, theirs), atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"progressive": "residual", "progressive_input": "residual", "centered": False, "channel_mult": (1, 2, 1)},
        {"progressive": "none", "progressive_input": "residual", "attention_levels": ()},
        {
            "progressive": "none",
            "progressive_input": "none",
            "embedding": "positional",
            "fir": False,
            "skip_rescale": False,
            "scale_by_sigma": False,
        },
    ],
    ids=["medical", "residual", "cifar", "ddpm++"],
)
def test_network_is_the_published_one(changes):
    """Names, wiring and arithmetic at once: the plain network takes its layers in order by their published names."""
    model = small(**changes)
    params = randomised(param_shapes(model, (8, 8, 2)))
    x, time = random(2, 8, 8, 2), np.array([0.7, 3.0], np.float32)
    expected = plain.network(model, nested_names(model, params), x, time)
    out = jax.jit(lambda p: model.apply({"params": p}, x, time))(params)
    np.testing.assert_allclose(out, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


def test_patches_and_remat_keep_the_network():
    model, x, t = small(patch_size=2), random(1, 16, 16, 2), np.ones(1, np.float32)
    params = randomised(param_shapes(model, (16, 16, 2)))
    assert params["in_conv"]["kernel"].shape == (3, 3, 8, 8)
    again = small(patch_size=2, remat=True)
    first, second = (jax.jit(lambda p, net=net: net.apply({"params": p}, x, t))(params) for net in (model, again))
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_initial_values_are_as_published():
    """Uniform within sqrt(3 scale / mean fan), 0 where a branch or the network ends; the new network returns 0."""
    model = small(num_channels=32)
    params = init_params(model, 0, (8, 8, 2))
    bounds = {
        ("down_0_block_0", "in_conv"): np.sqrt(3 / (9 * 32)),
        ("down_1_attention_0", "qkv"): np.sqrt(0.3 / 64),
        ("up_1_block_0", "skip"): np.sqrt(3 / (0.5 * (128 + 64))),
    }
    for (part, layer), bound in bounds.items():
        kernel = params[part][layer]["kernel"]
        assert 0.97 * bound < np.abs(kernel).max() <= bound
        assert not params[part][layer]["bias"].any()
    assert abs(params["fourier"]["frequencies"].std() - 16) < 6
    x, t = random(1, 8, 8, 2), np.ones(1, np.float32)
    out = jax.jit(lambda p: model.apply({"params": p}, x, t))(params)
    assert not np.asarray(out).any()


def config_of_small():
    config = get_config()
    config.data.update(image_size=8, num_coils=1)
    config.model.update(
        name="ncsnpp", num_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,)
    )
    config.denoiser.update(parametrization="score", sandwich="adjoint")
    config.schedule.update(name="ve", sigma_min=0.01, sigma_max=50.0)
    return config


def write_checkpoint(path, model, params, step=7):
    theirs = jax.tree.map(np.asarray, nested_names(model, params))
    state = {"step": step, "params_ema": theirs, "optimizer": {"target": theirs}, "rng": np.zeros(2, np.uint32)}
    path.write_bytes(msgpack_serialize(state))
    return theirs


def test_import_makes_a_workdir_that_eval_reads(tmp_path):
    config = config_of_small()
    model = get_model(config, 2)
    params = randomised(param_shapes(model, (8, 8, 2)))
    source = tmp_path / "checkpoint_26"
    write_checkpoint(source, model, params)
    written = import_checkpoint(config, source, tmp_path / "workdir")
    assert written.name == "7"
    loaded, step = load_ema_params(tmp_path / "workdir", build(config).template_params())
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert "checkpoints already" in message_of(import_checkpoint, config, source, tmp_path / "workdir")


def test_import_tells_what_does_not_fit(tmp_path):
    config = config_of_small()
    model, source = get_model(config, 2), tmp_path / "checkpoint_1"
    theirs = write_checkpoint(source, model, randomised(param_shapes(model, (8, 8, 2))))
    theirs["Conv_0"]["kernel"] = theirs["Conv_0"]["kernel"][..., :4]
    theirs["Extra_0"] = {"W": np.ones(2, np.float32)}
    del theirs["Dense_1"]["bias"]
    source.write_bytes(msgpack_serialize({"params_ema": theirs}))
    message = message_of(import_checkpoint, config, source, tmp_path / "a")
    for told in (
        "3 differences",
        "Conv_0/kernel has shape (3, 3, 2, 4)",
        "missing Dense_1/bias",
        "unexpected Extra_0/W",
    ):
        assert told in message
    assert "no entry 'params'" in message_of(flax_import.read_flax_checkpoint, source, "params")
    source.write_bytes(source.read_bytes()[:-100])
    assert "no readable Flax file" in message_of(flax_import.read_flax_checkpoint, source)
    assert "cannot be read" in message_of(flax_import.read_flax_checkpoint, tmp_path / "none")
    theirs = write_checkpoint(source, model, randomised(param_shapes(model, (8, 8, 2))))
    theirs["Dense_0"]["bias"] = np.full_like(theirs["Dense_0"]["bias"], np.nan)
    source.write_bytes(msgpack_serialize({"params_ema": theirs}))
    assert "not finite" in message_of(import_checkpoint, config, source, tmp_path / "b")
