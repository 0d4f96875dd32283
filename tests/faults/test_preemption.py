"""SIGTERM and SIGINT: the run ends between two steps or rounds, with all saved, and goes on later as if it had not."""

import os
import signal
import socket
import subprocess
import threading

import numpy as np
import pytest

from msm import run_lib
from msm.experiment import build
from msm.infra import preemption, rounds, sharding
from msm.infra.checkpoints import export_params
from msm.infra.errors import Stopped
from msm.models.init import init_params
from msm.modes import evaluate as evaluation
from tests.helpers.checkpoint_runs import script, steps
from tests.helpers.checks import hashes
from tests.helpers.small_runs import assert_same_run, small_config


@pytest.fixture
def config(tiny_store):
    return small_config(tiny_store)


@pytest.fixture
def handlers():
    """Handlers of the test's own, which record what reaches them; put back afterwards."""
    received = []
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in preemption.SIGNALS}
    yield received
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_the_first_signal_is_a_notice_and_the_second_acts_as_before(handlers, number):
    with preemption.watch() as notice:
        assert not notice.reached(1)
        os.kill(os.getpid(), number)
        assert notice.reached(2) and handlers == []
        os.kill(os.getpid(), number)
        assert handlers == [number]
        with pytest.raises(Stopped) as stopped:
            notice.stop("step 2")
    assert stopped.value.status == 128 + number


def test_handlers_are_put_back_and_a_notice_is_not_kept(handlers):
    with preemption.watch() as notice:
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.reached(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert handlers == [signal.SIGTERM]
    with preemption.watch() as another:
        assert not another.reached(1)


def test_outside_the_main_thread_signals_are_left_alone(handlers):
    found = []

    def run():
        with preemption.watch() as notice:
            found.append((notice.reached(1), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(False, before)]


POD = """
import sys, time
import jax
port, index = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
from msm.infra import preemption
from msm.infra.errors import Stopped
with preemption.watch() as notice:
    print("ready", flush=True)
    for step in range(1, 100_000):
        time.sleep(0.005 * (1 + index))  # one process is ahead of the other
        if notice.reached(step):
            break
    try:
        notice.stop("it")
    except Stopped as stopped:
        print(step, stopped.status)
"""


def test_two_processes_stop_after_the_same_step_though_one_alone_is_told():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pod = [script(POD, port, i, stdout=subprocess.PIPE) for i in range(2)]
    try:
        assert [process.stdout.readline() for process in pod] == ["ready\n"] * 2
        pod[1].send_signal(signal.SIGTERM)
        told = [process.communicate(timeout=300)[0] for process in pod]
    finally:
        for process in pod:
            process.kill()
    assert told[0] == told[1] and told[0].endswith(" 143\n")


def test_training_saves_the_step_it_is_in_and_goes_on_bit_for_bit(config, trained_run, tmp_path, monkeypatch, caplog):
    config.training.resume_every = config.training.checkpoint_every = 100
    shard_batch, count = sharding.shard_batch, []

    def interrupt_in_the_third(tree, mesh):
        count.append(1)
        if len(count) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return shard_batch(tree, mesh)

    monkeypatch.setattr(sharding, "shard_batch", interrupt_in_the_third)
    with pytest.raises(Stopped) as stopped:
        run_lib.train(config, str(tmp_path / "run"))
    assert stopped.value.status == 130
    assert "SIGINT: stopped after step 3 of 4, which is saved; the same command goes on from there" in caplog.text
    assert steps(tmp_path / "run" / "checkpoints-meta") == [3] and not steps(tmp_path / "run" / "checkpoints")
    run_lib.train(config, str(tmp_path / "run"))
    assert len(count) == 4
    assert_same_run(config, trained_run, tmp_path / "run")


@pytest.fixture
def untrained(config, tmp_path):
    """A config whose evaluation uses the initial parameters and a solver that needs no network."""
    experiment = build(config)
    params = init_params(experiment.model, 0, experiment.image_shape)
    export_params(tmp_path / "other", params, 0, {})
    config.eval.checkpoint = str(tmp_path / "other")
    config.eval.solvers = ("zero_filled",)
    return config


def test_evaluation_stops_between_rounds(untrained, tmp_path, monkeypatch, caplog):
    solve_round = evaluation.solve_round

    def terminate(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return solve_round(*args)

    monkeypatch.setattr(evaluation, "solve_round", terminate)
    with pytest.raises(Stopped) as stopped:
        run_lib.evaluate(untrained, str(tmp_path / "run"))
    assert stopped.value.status == 143 and "SIGTERM: stopped after 1 of 2 rounds" in caplog.text
    [first] = hashes(tmp_path / "run" / "eval")
    before = hashes(tmp_path / "run" / "eval")
    monkeypatch.undo()
    summary = run_lib.evaluate(untrained, str(tmp_path / "run"))
    after = hashes(tmp_path / "run" / "eval")
    assert after[first] == before[first] and "rounds/round_0001.npz" in after
    assert summary["run"]["slices"] == 6


def test_drawing_stops_between_rounds(untrained, tmp_path, monkeypatch, caplog):
    untrained.sampling.num_images, untrained.sampling.batch_size = 4, 2
    untrained.sampling.reference_split, untrained.sampling.check_images = "none", 0
    write = rounds.write

    def terminate(*args):
        write(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(rounds, "write", terminate)
    with pytest.raises(Stopped):
        run_lib.sample(untrained, str(tmp_path / "run"))
    assert "SIGTERM: stopped after 1 of 2 rounds" in caplog.text
    folder = tmp_path / "run" / "samples" / "generated"
    before = hashes(folder)
    assert list(before) == ["rounds/round_0000.npz"]
    monkeypatch.undo()
    run_lib.sample(untrained, str(tmp_path / "run"))
    assert hashes(folder)["rounds/round_0000.npz"] == before["rounds/round_0000.npz"]
    with np.load(folder / "images.npz") as drawn:
        assert drawn["images"].shape[0] == 4
