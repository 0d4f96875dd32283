"""Run by the tests of this folder in processes of its own: does tasks and notes what this process reads and writes.

Arguments: a file of JSON that says what to do, see `runs.start`, and the number of this process. What is noted of each
task is put beside that file, as `<job>.<process>.json`: 'writes' (files that Python opened for writing), 'acquisitions'
and 'references' (places of every batch read), 'programs' (what was mapped over the devices) and 'end'.
"""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from msm.infra import processes

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
COLLECTIVES = r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-[a-z]+)(?:-start)?\("


class Notes:
    """What this process does, by task."""

    def __init__(self, path: Path, workdirs: str):
        self.path, self.workdirs, self.tasks, self.now = path, workdirs, {}, None
        sys.addaudithook(self.hear)

    def begin(self, name: str) -> None:
        kinds = ("writes", "acquisitions", "references", "programs")
        self.now = self.tasks[name] = {kind: [] for kind in kinds}

    def end(self, how: str) -> None:
        ended, self.now = self.now, None
        ended["end"] = how
        self.path.write_text(json.dumps(self.tasks))

    def hear(self, event: str, arguments: tuple) -> None:
        if self.now is None or event not in ("open", "sqlite3.connect") or isinstance(arguments[0], int):
            return
        path = os.fsdecode(arguments[0])
        if path.startswith(self.workdirs) and (event != "open" or arguments[2] & WRITING):
            self.now["writes"].append(os.path.relpath(path, self.workdirs))

    def watch_reading(self) -> None:
        from msm import datasets

        for name, kind in (("acquisitions", datasets.Acquisitions), ("references", datasets.References)):

            def noted(this, indices, batch=kind.batch, name=name):
                places = [int(index) for index in indices]
                self.now[name].append(places)
                return batch(this, places)

            kind.batch = noted

    def watch_compilation(self) -> None:
        from msm.infra import sharding

        for name in ("data_parallel_step", "data_parallel_solve"):
            make = getattr(sharding, name)
            setattr(sharding, name, lambda *args, make=make, name=name: Noted(make(*args), name, self))


class Noted:
    """A jitted function that notes, once it is compiled, its collectives and the operations of one device."""

    def __init__(self, function: Any, name: str, notes: Notes):
        self.function, self.name, self.notes, self.compiled = function, name, notes, None

    def lower(self, *args) -> "Noted":
        self.compiled = self.function.lower(*args).compile()
        collectives = sorted(set(re.findall(COLLECTIVES, self.compiled.as_text())))
        flops = self.compiled.cost_analysis()["flops"]
        self.notes.now["programs"].append({"kind": self.name, "collectives": collectives, "flops": flops})
        return self

    def compile(self) -> "Noted":
        return self

    def __call__(self, *args):
        return (self if self.compiled else self.lower(*args)).compiled(*args)


def stop_after(step: int) -> None:
    """Has this process sent SIGTERM in the given step; with several processes it then takes its time."""
    from msm.infra import sharding

    shard_batch, count = sharding.shard_batch, []

    def interrupt(tree, mesh):
        count.append(1)
        if len(count) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        if len(count) >= step and jax.process_count() > 1:
            time.sleep(2 if len(count) == step else 0.3)  # JAX looks for the signal once a second
        return shard_batch(tree, mesh)

    sharding.shard_batch = interrupt


def draw_nothing() -> None:
    """Pages and pictures take longer than all else here, and know nothing of devices: the pod's are enough."""
    from msm.reports import evaluation_page as report
    from msm.reports import samples_page as sample_report
    from msm.reports import tuning_figures

    report.write_report = sample_report.write_report = lambda *_: None
    tuning_figures.tuning_history = tuning_figures.tuning_slices = lambda *_: b""


def run_command(job: dict, index: int, notes: Notes) -> None:
    """main.py itself with the flags of a pod; the last process is told to stop."""
    from msm import main
    from tests.helpers import tiny_model

    tiny_model.register()
    sys.argv = [*job["command"], f"--process_id={index}"]  # which settings are overridden is read from here
    main.FLAGS(sys.argv)
    if index == job["count"] - 1:
        stop_after(job["stop_after"])
    notes.begin("command")
    try:
        main.main([])
    finally:
        notes.end("left")


def run_tasks(job: dict, index: int, notes: Notes) -> None:
    """The modes, one after the other; a task may have settings and a number of devices of its own."""
    processes.LEAVE_TIMEOUT_S = 3
    processes.join(*((job["coordinator"], job["count"], index) if job["count"] > 1 else ("", None, None)), timeout=120)
    from msm import run_lib
    from msm.infra import sharding
    from msm.infra.errors import Stopped, UserError
    from tests.helpers import tiny_model
    from tests.scale.runs import get_config

    tiny_model.register()
    notes.watch_reading()
    notes.watch_compilation()
    if job["count"] == 1:
        draw_nothing()
    modes = {"train": run_lib.train, "eval": run_lib.evaluate, "sample": run_lib.sample, "tune": run_lib.tune}
    get_mesh, shard_batch = sharding.get_mesh, sharding.shard_batch
    for task in job["tasks"]:
        config = get_config(job["store"], task.get("settings", {}).get(str(index), {}))
        devices = jax.devices()[: task.get("devices")]
        sharding.get_mesh = lambda devices=devices: get_mesh(devices)
        sharding.shard_batch = shard_batch
        if "stop_after" in task:
            stop_after(task["stop_after"])
        notes.begin(task["name"])
        try:
            modes[task["mode"]](config, task["workdir"])
            notes.end("done")
        except (UserError, Stopped) as error:
            notes.end(f"{type(error).__name__}: {error}")
    if job["count"] > 1:  # process 0 writes its last results: who leaves now would take it along
        multihost_utils.sync_global_devices("tasks")
    if job["count"] > 1 and index == job["count"] - 1:
        processes.leave(2, everywhere=False)
    processes.wait_for_all()


if __name__ == "__main__":
    what = json.loads(Path(sys.argv[1]).read_text())
    number = int(sys.argv[2])
    noted = Notes(Path(sys.argv[1]).with_suffix(f".{number}.json"), what["workdirs"])
    (run_command if "command" in what else run_tasks)(what, number, noted)
