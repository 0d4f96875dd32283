"""The network equals the published PyTorch one on that one's weights (see the README of the golden folder)."""

import jax
import numpy as np
import pytest

from msm.exchange.torch_files import read_state_dict
from msm.exchange.torch_import import params_to_state_dict
from tests.conformance.golden import golden_files, load_network

TOLERANCE = 3e-5  # max abs difference; both sides are float32


@pytest.mark.parametrize("path", golden_files("adm_*.npz"), ids=lambda p: getattr(p, "stem", p))
def test_output_equals_the_reference(path):
    stored = np.load(path)
    params, apply, _ = load_network(path)
    with jax.default_matmul_precision("highest"):
        y = jax.jit(apply)(params, np.moveaxis(stored["x"], 1, -1), stored["t"].astype(np.float32))
    assert np.abs(stored["y"]).max() > 0.1, "a reference of nearly zero would let anything pass"
    assert np.abs(np.moveaxis(np.asarray(y), -1, 1) - stored["y"]).max() <= TOLERANCE


@pytest.mark.parametrize("path", golden_files("adm_*.npz"), ids=lambda p: getattr(p, "stem", p))
def test_state_dict_round_trip_is_exact(path):
    params, _, _ = load_network(path)
    state_dict = read_state_dict(path.with_suffix(".pt"))
    back = params_to_state_dict(params)
    assert back.keys() == state_dict.keys()
    for name, value in state_dict.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
