"""A loss or gradient that is not finite: the step is skipped and counted, too many in a row end the run."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from msm import run_lib
from msm.configs.default import get_config
from msm.infra import sharding
from msm.infra.errors import UserError
from msm.infra.tally import Tally
from msm.optimizer import Layout, get_step_fn, init_state
from tests.helpers.checks import message_of
from tests.helpers.small_runs import saved_state, small_config

PARAMS = {"w": np.float32([0.5, -2.0]), "b": np.float32(0.25)}  # numpy: never donated
BATCHES = np.float32([[1, 2], [3, -1], [0.5, 0.25], [2, 2]])


def toy_loss(params, x, key):
    """|w| x + b^2 per example: infinite gradient at w = 0, overflow where x is huge."""
    del key
    return jnp.sqrt(jnp.sum(params["w"] ** 2)) * x + params["b"] ** 2


def toy_step(rate=0.1):
    """(step, state, key) of one device: gradient descent with momentum."""
    config = get_config()
    optimizer = optax.sgd(rate, momentum=0.9)
    mesh = sharding.get_mesh(jax.devices()[:1])
    step = sharding.data_parallel_step(get_step_fn(config, toy_loss, optimizer, Layout(PARAMS)), mesh)
    return step, init_state(PARAMS, optimizer), jax.random.key(0)


def leaves(state) -> list[np.ndarray]:
    state = Layout(PARAMS).to_tree(state)
    return [np.array(leaf) for leaf in jax.tree.leaves((state.params, state.ema_params, state.opt_state))]


def test_finite_steps_are_those_of_a_step_without_the_check():
    step, state, key = toy_step()
    optimizer = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def plain(params, ema, opt_state, number, x):
        grads = jax.grad(lambda p: jnp.mean(toy_loss(p, x, None)))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        rate = jnp.minimum(0.999, (1.0 + number) / (10.0 + number))
        return params, jax.tree.map(lambda old, new: rate * old + (1.0 - rate) * new, ema, params), opt_state

    expected = (PARAMS, PARAMS, optimizer.init(PARAMS))
    for number, batch in enumerate(BATCHES):
        state, results = step(state, batch, key)
        expected = plain(*expected, number, batch)
        assert int(results["skipped"]) == 0
    for found, wanted in zip(leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("batch", "weights", "rate"),
    [
        ([1.0, np.nan], (0.5, -2.0), 0.1),  # loss
        ([1.0, 1.0], (0.0, 0.0), 0.1),  # gradient of a finite loss
        ([1.0, 1.0], (0.5, -2.0), 3e38),  # the parameters that a finite gradient leads to
    ],
    ids=["loss", "gradient", "update"],
)
def test_a_step_that_is_not_finite_changes_the_step_number_alone(batch, weights, rate):
    step, state, key = toy_step(rate)
    state = state.replace(params=Layout(PARAMS).flatten({**PARAMS, "w": np.float32(weights)}))
    before = leaves(state)
    state, results = step(state, np.float32(batch) * (4 if rate > 1 else 1), key)
    assert int(results["skipped"]) == 1 and int(state.step) == 1
    for found, wanted in zip(leaves(state), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


def feed(tally, skipped, start=1):
    for step, value in enumerate(skipped, start):
        loss = jnp.float32(np.nan if value else 1.0)
        tally.add(step, {"loss": loss, "grad_norm": jnp.float32(2.0), "skipped": jnp.int32(value)})
    return tally.read()


def test_skipped_steps_are_counted_and_told(caplog):
    tally = Tally(3, {})
    assert feed(tally, [0, 1, 1, 0]) == {"loss": 1.0, "grad_norm": 2.0, "skipped": 2}
    assert "2 of the steps 1 to 4 skipped" in caplog.text
    caplog.clear()
    feed(tally, [0, 0], 5)
    assert not caplog.records
    feed(tally, [1, 1], 7)
    assert tally.meta() == {"skipped": 4, "skipped_in_a_row": 2}
    resumed = Tally(3, tally.meta())
    with pytest.raises(UserError, match="3 steps in a row were skipped, the last at step 9: loss is nan, gradient"):
        feed(resumed, [1], 9)


def test_a_long_row_is_found_within_and_not_only_at_the_end():
    with pytest.raises(UserError, match="the last at step 3"):
        feed(Tally(2, {}), [0, 1, 1, 0, 0])


def poison(monkeypatch, steps):
    """Puts NaN into the measurements of these batches, counted from 1 in each run."""
    shard_batch, count = sharding.shard_batch, [0]

    def shard(tree, mesh):
        count[0] += 1
        tree = tree.replace(y=tree.y * np.float32(np.nan)) if count[0] in steps else tree
        return shard_batch(tree, mesh)

    monkeypatch.setattr(sharding, "shard_batch", shard)


def test_training_skips_counts_stops_and_goes_on(tiny_store, tmp_path, monkeypatch, caplog):
    """Step 1 is skipped; 3 and 4 are two in a row, which end the run; started again with sound data it goes on."""
    config = small_config(tiny_store)
    config.training.max_skipped = 2

    def record():
        return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    poison(monkeypatch, {1, 3, 4})
    message = message_of(run_lib.train, config, str(tmp_path))
    assert "2 steps in a row were skipped, the last at step 4: loss is nan, gradient norm is nan" in message
    assert [line["skipped"] for line in record()] == [1, 1, 2]
    assert np.isnan(record()[0]["loss"]) and np.isfinite(record()[1]["loss"])
    kept = saved_state(config, tmp_path)
    assert kept[".step"] == 3 and all(np.isfinite(value).all() for value in kept.values())
    monkeypatch.undo()
    with caplog.at_level(logging.INFO):
        run_lib.train(config, str(tmp_path))
    assert "resuming: 4 steps from step 3" in caplog.text
    final = saved_state(config, tmp_path)
    assert [(line["step"], line["skipped"]) for line in record()] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert final[".step"] == 4
    assert any(np.any(kept[name] != final[name]) for name in kept if name.startswith(".params"))
