"""Two processes of a run whose workdir is a URL: each in a folder of its own; one run that resumes.

The store is a folder named by file://, which both processes reach as they would a bucket.
"""

import json
from pathlib import Path

from tests.scale.runs import SETTINGS, finish, free_port, start


def train(tmp_path: Path, store, job: str, steps: int) -> None:
    """Two processes of main.py up to this step; the last is never told to stop."""
    settings = {**SETTINGS, "data.dir": store, "training.num_steps": steps, "training.log_every": 1}
    command = [
        *("main.py", "--config=configs/brain64_msm.py:smoke", "--mode=train"),
        *(f"--workdir=file://{tmp_path}/bucket/run", f"--cache={tmp_path / 'cache'}"),
        *(f"--config.{name}={value}" for name, value in settings.items()),
        *(f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"),
    ]
    finish(start(tmp_path, job, 1, 2, command=command, stop_after=-1))


def test_a_run_of_two_processes_goes_on_from_the_store(tiny_store, tmp_path):
    train(tmp_path, tiny_store, "first", 2)
    train(tmp_path, tiny_store, "second", 4)
    run = tmp_path / "bucket" / "run"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "4"]
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    log = (run / "train.log").read_text()
    assert "training 2 steps from step 0" in log and "resuming: 4 steps from step 2" in log
    assert not (run / ".lock-train").exists()
