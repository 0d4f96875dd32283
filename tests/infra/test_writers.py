"""infra/writers.py and infra/progress.py: the record of a run has neither gap nor duplicate, and lines are readable."""

import io
import json
import logging
import math
import struct

import absl.logging
import numpy as np
import PIL.Image
import pytest
from tensorboardX.proto.event_pb2 import Event

from msm.infra import writers
from msm.infra.progress import Progress
from msm.infra.writers import MetricWriter, setup_logging


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    """Every event in the TensorBoard files: records of (length uint64, crc uint32, bytes, crc uint32)."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def scalars(folder):
    return [(e.step, v.tag, v.simple_value) for e in events(folder) for v in e.summary.value if not v.HasField("image")]


@pytest.fixture
def quiet_logging():
    """Takes away what setup_logging did to the root logger."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in writers.CHATTY_LOGGERS}
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


def test_metrics_are_exact_and_on_disk_at_once(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": 0.1 + 0.2, "norm": np.float32(1) / 3})
        assert lines(tmp_path) == [{"step": 1, "loss": 0.1 + 0.2, "norm": float(np.float32(1) / 3)}]  # before close
        writer.write(2, {"loss": math.inf, "norm": math.nan})
    last = lines(tmp_path)[-1]
    assert last["loss"] == math.inf
    assert math.isnan(last["norm"])


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    with MetricWriter(tmp_path) as writer:
        writer.write(3, {"loss": 0.5, "norm": 2.0})
        writer.image(4, "samples", picture)
    assert scalars(tmp_path) == [(3, "loss", 0.5), (3, "norm", 2.0)]
    ((step, value),) = [(e.step, v) for e in events(tmp_path) for v in e.summary.value if v.HasField("image")]
    assert (step, value.tag) == (4, "samples")
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(value.image.encoded_image_string))), picture)


@pytest.mark.parametrize("picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)])
def test_a_picture_of_another_kind_is_refused(tmp_path, picture):
    with MetricWriter(tmp_path) as writer, pytest.raises(ValueError, match=r"must be \(H,W,3\) uint8"):
        writer.image(1, "samples", picture)


def test_resuming_leaves_neither_gap_nor_duplicate(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.rewind(0)
        for step in range(1, 8):
            writer.write(step, {"loss": step / 10})
    # Killed after step 7 while writing step 8; the last checkpoint is of step 5.
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    with MetricWriter(tmp_path) as writer:
        writer.rewind(5)
        for step in range(6, 9):
            writer.write(step, {"loss": step / 10})
    assert lines(tmp_path) == [{"step": step, "loss": step / 10} for step in range(1, 9)]

    # TensorBoard drops, on reading, what precedes a SessionLog.START event and has at least its step.
    shown = {}
    for event in events(tmp_path):
        if event.HasField("session_log"):
            shown = {step: value for step, value in shown.items() if step < event.step}
        for value in event.summary.value:
            assert event.step not in shown
            shown[event.step] = value.simple_value
    assert shown == pytest.approx({step: step / 10 for step in range(1, 9)})


def test_rewinding_keeps_an_intact_record_untouched(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
        writer.write(2, {"loss": 2.0})
    before = (tmp_path / "metrics.jsonl").stat()
    MetricWriter(tmp_path).rewind(2)
    after = (tmp_path / "metrics.jsonl").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    MetricWriter(tmp_path).rewind(0)
    assert lines(tmp_path) == []


def test_rewinding_while_open_goes_on_in_the_new_file(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": 0.0})
        writer.rewind(1)
        writer.write(2, {"loss": 1.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 0.0), (2, 1.0)]


def test_other_processes_write_nothing(tmp_path, monkeypatch, capsys, quiet_logging):
    monkeypatch.setattr(writers.jax, "process_index", lambda: 1)
    with MetricWriter(tmp_path) as writer:
        writer.rewind(0)
        writer.write(1, {"loss": 1.0})
        writer.image(1, "samples", np.zeros((2, 2, 3), np.uint8))
    setup_logging(tmp_path, "train")
    logging.info("not told twice by a pod")
    logging.warning("but trouble is")
    assert list(tmp_path.iterdir()) == []
    told = capsys.readouterr().err
    assert "not told twice" not in told
    assert "but trouble is" in told


def test_logging_goes_to_the_console_and_to_the_modes_file(tmp_path, capsys, quiet_logging):
    logging.getLogger().addHandler(absl.logging.get_absl_handler())  # as absl.app does
    setup_logging(tmp_path, "train")
    logging.info("loss %.2f", 0.5)
    logging.getLogger("jax").info("chatter")
    logging.getLogger("absl").error("a traceback of Orbax")
    setup_logging(tmp_path, "eval")
    logging.warning("careful")
    train, evaluation = ((tmp_path / f"{mode}.log").read_text().splitlines() for mode in ("train", "eval"))
    assert [line.split(" ", 2)[2] for line in train] == ["INFO loss 0.50", "ERROR a traceback of Orbax"]
    assert [line.split(" ", 2)[2] for line in evaluation] == ["WARNING careful"]
    assert [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()] == ["loss 0.50", "careful"]


def test_plain_progress_tells_rate_and_eta_at_most_every_30_s(caplog):
    caplog.set_level(logging.INFO)
    now = 0.0
    progress = Progress(1000, start=100, label="train", bar=False, clock=lambda: now)
    now = 20.0  # of compilation, which must not count
    progress.update(101, loss=1.0)
    for step in range(102, 1001):
        now += 0.5
        progress.update(step, loss=0.123456)
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "train 121/1000  2 step/s  ETA 07:20  loss 0.1235"
    assert told[1] == "train 181/1000  2 step/s  ETA 06:50  loss 0.1235"
    assert told[-1] == "train 1000/1000  2 step/s  ETA 00:00  loss 0.1235"
    assert len(told) == 16  # 469.5 s


def test_slow_progress_tells_seconds_per_step(caplog):
    caplog.set_level(logging.INFO)
    now = 0.0
    progress = Progress(10, label="eval", unit="round", bar=False, clock=lambda: now)
    for step in (1, 2):
        now += 400.0
        progress.update(step)
    assert caplog.records[-1].getMessage() == "eval 2/10  400 s/round  ETA 53:20"


def test_a_terminal_gets_a_bar_and_log_lines_above_it(tmp_path, capsys, caplog, quiet_logging):
    setup_logging(tmp_path, "train")
    with Progress(10, start=4, label="train", bar=True) as progress:
        progress.update(5, loss=0.5)
        logging.info("a checkpoint")
        progress.update(10, loss=0.25)
    told = capsys.readouterr().err
    assert "a checkpoint\n" in told
    last = told.rstrip().split("\r")[-1]
    assert last.startswith("train: 100%")
    assert "10/10" in last
    assert "loss=0.25" in last
    assert "10/10" not in (tmp_path / "train.log").read_text()


def test_there_is_no_bar_without_a_terminal(capsys):
    with Progress(2, label="train") as progress:
        progress.update(1)
    assert "\r" not in capsys.readouterr().err
