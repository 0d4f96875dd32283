"""The U-Net: its arithmetic against plain numpy, its options against each other, its sizes, its initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from msm.configs.default import get_config
from msm.models import layers
from msm.models.init import init_params, param_shapes
from msm.models.levels import attention_at, level_sizes
from msm.models.registry import get_model
from tests.helpers.checks import message_of


def toy_config(**model):
    config = get_config()
    config.data.image_size = 16
    toy = {"num_channels": 8, "channel_mult": (1, 2), "attention_resolutions": (8,), "num_heads": 2, "patch_size": 1}
    config.model.update(toy | model)
    return config


def away_from_zero(params, seed=1, scale=0.1):
    """Parameters without the zeros of a new network, which would hide most of it."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + scale * rng.standard_normal(leaf.shape, dtype=np.float32), params)


def images(batch, rows=16, columns=16, channels=2, seed=2):
    return np.random.default_rng(seed).standard_normal((batch, rows, columns, channels), dtype=np.float32)


TIMES = np.array([0.0, 26.41, 500.0], np.float32)


@pytest.fixture(scope="module")
def toy():
    """(jitted apply, parameters away from zero, initial parameters) of the toy network."""
    model = get_model(toy_config(), 2)
    params = init_params(model, 0, (16, 16, 2))
    return jax.jit(lambda p, x, t: model.apply({"params": p}, x, t)), away_from_zero(params), params


# --- layers against numpy ---------------------------------------------------------------------------------------------


def test_gradients_of_a_convolution_are_those_of_jax_in_the_layout_of_the_fast_path():
    """Kernels [0, 1, o, i] are what XLA's CPU backend computes with plain code inside loops."""
    rng = np.random.default_rng(0)
    x, kernel, weight = (rng.standard_normal(s, dtype=np.float32) for s in ((2, 5, 6, 3), (3, 3, 3, 4), (2, 5, 6, 4)))

    def plain(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    def gradient(convolve, argument):
        return jax.jit(jax.grad(lambda *a: jnp.sum(weight * convolve(*a) ** 2), argument))

    for argument in (0, 1):
        expected = gradient(plain, argument)(x, kernel)
        np.testing.assert_allclose(gradient(layers.conv3x3, argument)(x, kernel), expected, rtol=1e-4, atol=1e-4)
    swapped = ["x[0, 1, o, i]->" in gradient(c, 0).lower(x, kernel).as_text() for c in (plain, layers.conv3x3)]
    assert swapped == [True, False]


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (96, 32), (48, 24), (16, 16), (5, 5), (34, 17)])
def test_group_norm(channels, groups):
    assert layers.num_groups(channels) == groups
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 6, channels)) * 3 + 5
    weight, bias = rng.standard_normal((2, channels))
    scale, shift = rng.standard_normal((2, 2, channels))
    grouped = x.reshape(2, 24, groups, -1)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * weight + bias
    params = {"params": {"scale": jnp.float32(weight), "bias": jnp.float32(bias)}}
    norm = layers.GroupNorm()
    np.testing.assert_allclose(norm.apply(params, jnp.float32(x)), expected, atol=2e-5)
    modulated = expected * (1 + scale[:, None, None]) + shift[:, None, None]
    result = norm.apply(params, jnp.float32(x), jnp.float32(scale), jnp.float32(shift))
    np.testing.assert_allclose(result, modulated, atol=5e-5)


def test_group_norm_statistics_are_float32():
    x = jnp.asarray(1000 + images(1, 32, 32, 32), jnp.bfloat16)
    params = {"params": {"scale": jnp.ones(32), "bias": jnp.zeros(32)}}
    exact = layers.GroupNorm().apply(params, x.astype(jnp.float32))
    result = layers.GroupNorm().apply(params, x)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(result.astype(jnp.float32), exact, rtol=2**-8)


def test_resampling():
    x = images(2, 4, 6, 3)
    np.testing.assert_array_equal(layers.nearest_up2(x), x.repeat(2, 1).repeat(2, 2))
    pooled = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(layers.avg_pool2(x), pooled, atol=1e-6)
    stacked = layers.space_to_depth(x, 2)
    np.testing.assert_array_equal(stacked[..., 3:6], x[:, ::2, 1::2])  # second pixel of the first row of each block
    np.testing.assert_array_equal(layers.depth_to_space(stacked, 2), x)


def test_timestep_embedding_puts_cosines_first():
    phases = TIMES[:, None] * 10_000.0 ** (-np.arange(4) / 4)
    expected = np.concatenate([np.cos(phases), np.sin(phases)], axis=1)
    np.testing.assert_allclose(layers.timestep_embedding(TIMES, 8), expected, atol=5e-5)
    assert layers.timestep_embedding(TIMES, 7).shape == (3, 7)


def test_attention_splits_heads_before_q_k_v():
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((1, 5, 2 * 3 * 4))
    heads = []
    for head in range(2):
        q, k, v = np.split(qkv[0, :, head * 12 : head * 12 + 12], 3, axis=-1)
        weights = np.exp(q @ k.T / 2)  # 2 = sqrt(4 channels)
        heads.append(weights / weights.sum(-1, keepdims=True) @ v)
    result = layers.self_attention(jnp.float32(qkv), num_heads=2)
    np.testing.assert_allclose(result[0], np.concatenate(heads, -1), atol=1e-5)


# --- the network ------------------------------------------------------------------------------------------------------


def test_new_network_returns_zero(toy):
    apply, _, initial = toy
    y = apply(initial, images(3), TIMES)
    assert y.shape == (3, 16, 16, 2) and y.dtype == jnp.float32
    np.testing.assert_array_equal(y, 0)


def test_result_does_not_depend_on_batch_mates(toy):
    apply, params, _ = toy
    x = images(3)
    together = apply(params, x, TIMES)
    assert np.abs(together[0] - apply(params, x, TIMES + 1)[0]).max() > 1e-3, "the time has no effect"
    alone = np.concatenate([apply(params, x[i : i + 1], TIMES[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(alone).max())


def test_non_square_image_commutes_with_transposition(toy):
    """Rows and columns play the same part: swapping them in images and kernels swaps them in the result."""
    apply, params, _ = toy
    x = images(1, 8, 20)
    y = apply(params, x, TIMES[1:2])
    assert y.shape == x.shape
    swapped = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1) if leaf.ndim == 4 else leaf, params)
    transposed = apply(swapped, x.swapaxes(1, 2), TIMES[1:2]).swapaxes(1, 2)
    np.testing.assert_allclose(y, transposed, atol=1e-5 * np.abs(y).max())


def test_bfloat16_is_close_to_float32(toy):
    apply, params, _ = toy
    x = images(3)
    half = get_model(toy_config(dtype="bfloat16"), 2)
    exact = apply(params, x, TIMES)
    y = jax.jit(half.apply)({"params": params}, x, TIMES)
    assert y.dtype == jnp.float32
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.03, "bfloat16 has 8 bits: exactly equal means that it was not used"


def test_remat_gives_the_same_gradients():
    x, t = images(2), TIMES[:2]
    gradients = []
    for remat in (False, True):
        model = get_model(toy_config(channel_mult=(1,), attention_resolutions=(16,), remat=remat), 2)
        params = away_from_zero(init_params(model, 0, (16, 16, 2)))

        def loss(p, model=model):
            return jnp.mean(jnp.square(model.apply({"params": p}, x, t) - x))

        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(params))) == remat
        gradients.append(jax.jit(jax.grad(loss))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *gradients)


def test_patch_size_is_space_to_depth_around_the_network(toy):
    """patch_size 2 on 2 channels equals patch_size 1 on the 8 channels of the stacked image, same parameters."""
    stacked_config = toy_config()
    patched_config = toy_config(patch_size=2)
    patched_config.data.image_size = 32
    stacked, patched = get_model(stacked_config, 8), get_model(patched_config, 2)
    assert patched.attention_levels == stacked.attention_levels == (1,), "sizes count after space-to-depth"
    params = away_from_zero(init_params(patched, 0, (32, 32, 2)))
    x, t = images(1, 32, 32), TIMES[1:2]
    y = jax.jit(patched.apply)({"params": params}, x, t)
    expected = stacked.apply({"params": params}, layers.space_to_depth(x, 2), t)
    np.testing.assert_allclose(y, layers.depth_to_space(expected, 2), atol=1e-5 * np.abs(y).max())


# The networks of the published experiments; facts known of them: 105.2 and 138.3 million parameters.
FULL = [(128, (1, 1, 2, 3, 4), 105_192_834), (256, (1, 1, 2, 2, 4, 4), 138_284_162)]


@pytest.mark.parametrize(("size", "mult", "count"), FULL)
def test_full_size_parameter_counts(size, mult, count):
    config = toy_config(num_channels=128, channel_mult=mult, num_res_blocks=2)
    config.model.update(attention_resolutions=(32, 16, 8), num_heads=4, num_head_channels=64)
    config.data.image_size = size
    shapes = param_shapes(get_model(config, 2), (size, size, 2))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_attention_sits_at_the_named_feature_map_sizes():
    assert level_sizes(64, 2, 3) == (32, 16, 8)
    config = toy_config(channel_mult=(1, 1, 1), attention_resolutions=(16, 4, 99))
    params = param_shapes(get_model(config, 2), (16, 16, 2))
    with_attention = {name for name, block in params.items() if "qkv" in block}
    expected = {"input_blocks_1_1", "input_blocks_5_1", "middle_block_1"}
    assert with_attention == expected | {f"output_blocks_{i}_1" for i in (0, 1, 4, 5)}


@pytest.mark.parametrize("name", ["adm", "ncsnpp"])
def test_at_another_size_the_same_levels_have_attention(name):
    """8 of 16 pixels is level 1, which has 12 of 24; left as it was, the list would name no level of that size."""
    config = toy_config(name=name, attention_resolutions=(8, 99))
    trained = param_shapes(get_model(config, 2), (16, 16, 2))
    assert attention_at(16, config.model, (8, 99), trained_size=16) == (8,)
    config.data.image_size = 24
    assert param_shapes(get_model(config, 2), (24, 24, 2)).keys() != trained.keys()
    config.model.attention_resolutions = attention_at(24, config.model, (8, 99), trained_size=16)
    assert config.model.attention_resolutions == (12,)
    assert param_shapes(get_model(config, 2), (24, 24, 2)) == trained


@pytest.mark.parametrize("name", ["adm", "ncsnpp"])
def test_any_rows_and_columns_are_padded_inside_and_cropped_after(name):
    """An image of 7 x 10 pixels gives what its mirrored continuation to 8 x 12 gives there, whatever lies beyond."""
    config = toy_config(name=name, channel_mult=(1, 1, 1))
    model = get_model(config, 2)
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(1, 7, 10, 2)).astype(np.float32), np.ones(1, np.float32)
    shapes = param_shapes(model, (7, 10, 2))
    params = jax.tree.map(lambda s: 0.1 * rng.normal(size=s.shape).astype(np.float32), shapes)
    apply = jax.jit(lambda x: model.apply({"params": params}, x, t))
    out, padded = apply(x), apply(np.pad(x, ((0, 0), (0, 1), (0, 2), (0, 0)), mode="symmetric"))
    assert out.shape == x.shape and np.abs(out).max() > 0.1
    np.testing.assert_allclose(out, padded[:, :7, :10], atol=1e-5)


def test_attention_of_several_levels_at_another_size():
    """Twice the size: 16 and 8 stay levels 2 and 3, though 16 is a feature map of level 3 there."""
    model = toy_config(channel_mult=(1, 1, 1, 1)).model
    assert attention_at(128, model, (8, 16), trained_size=64) == (32, 16)


# --- initial values ---------------------------------------------------------------------------------------------------


def test_numpy_initialisation_has_the_distribution_of_flax_initialisation(toy):
    _, _, params = toy
    model = get_model(toy_config(), 2)
    ours = flatten_dict(params)
    key = jax.random.key(0, impl="rbg")  # compiles in a second; the default takes ten times as long
    flax = flatten_dict(jax.jit(model.init)(key, images(1), TIMES[:1])["params"])
    assert ours.keys() == flax.keys()
    for path, leaf in ours.items():
        other = np.asarray(flax[path])
        assert leaf.shape == other.shape and leaf.dtype == np.float32
        if path[-1] == "scale" or not other.any():  # normalisations and layers that start at zero
            np.testing.assert_array_equal(leaf, other, err_msg=str(path))
        elif leaf.size > 1000:
            fan_in = np.prod(ours[(*path[:-1], "kernel")].shape[:-1])
            for values in (leaf, other):
                assert 0.99 < np.abs(values).max() * np.sqrt(fan_in) <= 1, path
                assert abs(values.std() * np.sqrt(3 * fan_in) - 1) < 0.06, path


def test_layers_that_start_at_zero(toy):
    zero = {path[:-1] for path, leaf in flatten_dict(toy[2]).items() if path[-1] == "kernel" and not leaf.any()}
    layer_paths = {path[:-1] for path in flatten_dict(toy[2])}
    assert zero == {path for path in layer_paths if path[-1] in ("out_conv", "proj_out")}
    assert ("out_conv",) in zero and ("input_blocks_1_0", "out_conv") in zero and ("middle_block_1", "proj_out") in zero


def test_initial_values_depend_on_seed_and_name_only(toy):
    _, _, params = toy
    again = init_params(get_model(toy_config(), 2), 0, (16, 16, 2))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    other_seed = init_params(get_model(toy_config(), 2), 1, (16, 16, 2))
    assert (other_seed["time_embed_0"]["kernel"] != params["time_embed_0"]["kernel"]).mean() > 0.99
    more_layers = init_params(get_model(toy_config(attention_resolutions=(16, 8)), 2), 0, (16, 16, 2))
    assert "input_blocks_1_1" in more_layers and "input_blocks_1_1" not in params
    jax.tree.map(np.testing.assert_array_equal, params["input_blocks_3_0"], more_layers["input_blocks_3_0"])


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ({"name": "amd"}, ["amd", "did you mean 'adm'"]),
        ({"dtype": "bfloat"}, ["model.dtype", "did you mean 'bfloat16'"]),
        ({"num_res_blocks": 0}, ["model.num_res_blocks is 0"]),
        ({"channel_mult": ()}, ["model.channel_mult"]),
    ],
)
def test_settings_that_do_not_fit(model, parts):
    message = message_of(get_model, toy_config(**model), 2)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("heads", [{"num_heads": 3}, {"num_head_channels": 12}])
def test_heads_that_do_not_divide_the_channels(heads):
    message = message_of(param_shapes, get_model(toy_config(**heads), 2), (16, 16, 2))
    assert "16 channels" in message and "model.num_heads" in message


def test_images_of_other_channels_do_not_fit():
    model = get_model(toy_config(channel_mult=(1, 1, 1)), 2)
    assert "not (1, 16, 16, 3)" in message_of(param_shapes, model, (16, 16, 3))
