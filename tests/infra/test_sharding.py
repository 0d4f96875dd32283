"""Data parallelism: four devices give what one device gives, and what jax.pmap gives, and never gather the batch."""

import json
import os
import subprocess
import sys

import jax
import pytest

from msm.infra import sharding
from tests.helpers.paths import ROOT
from tests.test_losses import SIZE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found():
    """What helpers/sharding_check.py measures on four host devices; the number of devices is fixed when JAX starts."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4".strip(),
        # Threads of XLA's pool, by default one per core: four devices on two cores can then deadlock.
        "PJRT_NPROC": "16",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # of machine code: compiles faster, the same collectives
    }
    command = [sys.executable, "-m", "tests.helpers.sharding_check"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_raw_gradients_on_four_devices_are_those_of_one(found):
    assert found["gradient_size"] > 0.1
    assert found["gradient"] < 1e-5 * max(1, found["gradient_size"])


def test_state_and_metrics_on_four_devices_are_those_of_one(found):
    assert found["state_and_metrics"] < 1e-5


def test_step_equals_pmap_of_the_same_function(found):
    assert found["pmap"] < 1e-6


def test_every_device_holds_the_same_state(found):
    assert found["replicas"] == 0


def test_compiled_step_reduces_and_never_gathers(found):
    assert found["all_gather"] == 0
    assert found["all_reduce"] >= 1


def test_reconstruction_on_four_devices_is_that_of_one(found):
    assert found["solve_shape"] == [2, 8, SIZE, SIZE]
    assert found["solve_size"] > 0.1
    assert found["solve"] < 1e-5


def test_reconstruction_needs_no_communication(found):
    assert found["solve_collectives"] == 0


def test_distances_to_training_data_on_four_devices_are_those_of_one(found):
    assert found["copies_shape"] == [3, 8]
    assert found["copies"] < 1e-5


def test_mesh_has_one_axis_over_all_devices():
    mesh = sharding.get_mesh()
    assert mesh.axis_names == (sharding.AXIS,) and mesh.size == jax.device_count()
