"""The optimiser step on one vector: its layout, its results beside those of a step on the tree, its checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from msm import losses, optimizer
from msm.infra import sharding
from msm.infra.checkpoints import Checkpoints
from msm.optimizer import Layout
from tests.helpers.checkpoint_runs import make_data
from tests.test_losses import PARAMS, parts, toy_config, toy_measurement


def mix_of(vector) -> np.ndarray:
    return np.array(Layout(PARAMS).unflatten(vector)["mix"])


TREE = {
    "b": {"kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "bias": np.float32([7.0, 8.0])},
    "a": np.float32(5.0),
}


def test_layout_is_the_order_of_the_leaves_and_its_own_inverse():
    layout = Layout(TREE)
    flat = layout.flatten(TREE)
    assert isinstance(flat, np.ndarray) and layout.size == 27
    np.testing.assert_array_equal(flat, [5, 7, 8, *range(24)])
    for vector in (flat, jnp.asarray(flat)):
        back = layout.unflatten(vector)
        assert jax.tree.structure(back) == jax.tree.structure(TREE)
        jax.tree.map(np.testing.assert_array_equal, back, TREE)
    np.testing.assert_array_equal(jax.jit(lambda v: layout.flatten(layout.unflatten(v)))(flat), flat)


def test_layout_refuses_what_a_common_vector_would_round():
    with pytest.raises(ValueError, match="float32, not bfloat16, int32"):
        Layout({"a": np.int32(1), "b": jnp.zeros(2, jnp.bfloat16), "c": np.float32(1)})


def test_state_of_a_checkpoint_has_the_networks_tree_in_parameters_average_and_moments():
    """What Optax makes of the tree itself: checkpoints written before there was a vector have that form."""
    update, layout = optimizer.get_optimizer(toy_config()), Layout(TREE)
    state = optimizer.init_state(TREE, update)
    state = state.replace(opt_state=jax.tree.map(lambda a: a + np.asarray(1, a.dtype), state.opt_state))
    tree = layout.to_tree(state)
    wanted = optimizer.TrainState(jnp.zeros((), jnp.int32), TREE, TREE, update.init(TREE))
    assert jax.tree.structure(tree) == jax.tree.structure(wanted)
    assert jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, wanted)
    back = layout.from_tree(tree)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)


def tree_step(config, loss_fn, update):
    """The step on the tree of arrays, each updated and averaged on its own."""

    @jax.jit
    def step(state, batch, key):
        mean = lambda p: jnp.mean(loss_fn(p, batch, jax.random.fold_in(key, state.step)))  # noqa: E731
        grads = jax.grad(mean)(state.params)
        updates, opt_state = update.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        rate = jnp.minimum(config.optim.ema_rate, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: rate * old + (1.0 - rate) * new, state.ema_params, params)
        return optimizer.TrainState(state.step + 1, params, ema, opt_state)

    return step


@pytest.mark.parametrize("clip", [0.0, 0.01], ids=["unclipped", "clipped"])
def test_steps_are_those_on_the_tree(clip):
    """To the last bit; where clipping scales the gradient, its norm is a sum in another order, a last bit apart."""
    config = toy_config()
    config.optim.grad_clip = clip
    step, state, batch, key = step_of(config, 1)
    update, loss_fn = optimizer.get_optimizer(config), losses.get_loss_fn(config, *parts(config))
    plain = optimizer.TrainState(jnp.zeros((), jnp.int32), PARAMS, PARAMS, update.init(PARAMS))
    plain_step = tree_step(config, loss_fn, update)
    for _ in range(4):
        state, plain = step(state, batch, key)[0], plain_step(plain, batch, key)
    found = Layout(PARAMS).to_tree(state)
    assert jax.tree.structure(found) == jax.tree.structure(plain)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6 if clip else 0, atol=0)


def step_of(config, devices):
    loss_fn = losses.get_loss_fn(config, *parts(config))
    update, layout = optimizer.get_optimizer(config), Layout(PARAMS)
    mesh = sharding.get_mesh(jax.devices()[:devices])
    step = sharding.data_parallel_step(optimizer.get_step_fn(config, loss_fn, update, layout), mesh)
    state = sharding.replicate(optimizer.init_state(PARAMS, update), mesh)
    return step, state, sharding.shard_batch(toy_measurement(), mesh), sharding.replicate(jax.random.key(0), mesh)


def test_gradient_accumulation_equals_the_whole_batch():
    results = []
    for accumulate in (1, 2, 4):
        config = toy_config()
        config.optim.accumulate = accumulate
        step, state, batch, key = step_of(config, 1)
        for _ in range(3):
            state, metrics = step(state, batch, key)
        results.append((mix_of(state.params), float(metrics["loss"])))
    for mix, loss in results[1:]:
        np.testing.assert_allclose(mix, results[0][0], atol=1e-6)
        assert loss == pytest.approx(results[0][1], rel=1e-5)


def test_step_is_deterministic_and_counts():
    runs = []
    for _ in range(2):
        step, state, batch, key = step_of(toy_config(), 1)
        for _ in range(3):
            state, metrics = step(state, batch, key)
        runs.append((mix_of(state.params), float(metrics["loss"]), int(state.step)))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:] and runs[0][2] == 3


def test_learning_rate_warms_up_and_decays():
    config = toy_config()
    update = optimizer.get_optimizer(config)
    params, moved = {"w": jnp.ones(())}, []
    state = update.init(params)
    for _ in range(100):
        updates, state = update.update({"w": jnp.ones(())}, state, params)
        moved.append(-float(updates["w"]))
    assert moved[0] < 0.15 * max(moved) and moved[-1] < 0.01 * max(moved)
    assert max(moved) == pytest.approx(config.optim.learning_rate, rel=0.02) and np.argmax(moved) in range(8, 13)


def test_clipping_bounds_the_update_norm_before_adam():
    config = toy_config()
    config.optim.grad_clip = 0.5
    clipped, _ = optax.clip_by_global_norm(0.5).update({"w": jnp.full((4,), 10.0)}, optax.EmptyState())
    assert float(optax.tree.norm(clipped)) == pytest.approx(0.5, rel=1e-5)
    step, state, batch, key = step_of(config, 1)
    _, metrics = step(state, batch, key)
    assert float(metrics["grad_norm"]) > 0


def test_ema_follows_with_its_rate():
    step, state, batch, key = step_of(toy_config(), 1)
    before = mix_of(state.ema_params)
    state, _ = step(state, batch, key)
    rate = 1 / 10  # min(0.999, (1 + 0) / (10 + 0))
    np.testing.assert_allclose(mix_of(state.ema_params), rate * before + (1 - rate) * mix_of(state.params), rtol=1e-6)


def test_a_run_whose_checkpoint_holds_device_arrays_of_the_tree_goes_on(tmp_path):
    """What was saved before there was a vector: the tree, on the devices, as Optax made it."""
    update, layout, mesh = optimizer.get_optimizer(toy_config()), Layout(TREE), sharding.get_mesh(jax.devices()[:1])
    old = sharding.replicate(optimizer.TrainState(jnp.int32(3), TREE, TREE, update.init(TREE)), mesh)
    data = make_data()
    next(data)
    with Checkpoints(tmp_path, 3, 3) as saved:
        saved.save(3, old, data, {"step": 3})
        saved.wait()
        template = jax.eval_shape(layout.to_tree, optimizer.init_state(TREE, update))
        restored = saved.restore_latest(template, make_data())
    assert restored is not None
    state = layout.from_tree(restored[0])
    assert int(state.step) == 3 and state.params.shape == (27,)
    jax.tree.map(np.testing.assert_array_equal, layout.to_tree(state), old)
