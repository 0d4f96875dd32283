"""Measurement score-based diffusion models: train on incomplete measurements, reconstruct new ones, draw images."""

import gc
import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from msm.configs.rules import parse
from msm.infra import command_line, console
from msm.infra.errors import Stopped, UserError

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", None, "configs/NAME.py or configs/NAME.py:VARIANT; --config.SECTION.SETTING=VALUE changes one setting."
)
flags.DEFINE_string("workdir", None, "Folder of the run: everything it writes lands there; the same command resumes.")
flags.DEFINE_enum("mode", "train", ["train", "eval", "tune", "sample"], "What to do.")
flags.DEFINE_string(
    "cache", os.path.join(os.path.expanduser("~"), ".cache", "msm-jax"), "Folder of compiled programs; empty: none."
)
flags.DEFINE_string("coordinator", "", "Several processes: HOST:PORT of process 0, or auto on a pod or cluster.")
flags.DEFINE_integer("num_processes", None, "With --coordinator=HOST:PORT: how many processes the run has.")
flags.DEFINE_integer("process_id", None, "With --coordinator=HOST:PORT: which of them this one is, from 0.")
flags.DEFINE_float("join_timeout", 300, "Seconds until all processes must have met at the coordinator.")
flags.DEFINE_bool("debug", False, "Show the traceback of a mistake instead of one line.")


def run() -> None:
    gc.disable()  # modules are no garbage: looking for some while they load takes a seventh of the start
    from msm.infra import processes

    processes.join(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.join_timeout)
    with processes.telling_why():
        from msm import run_lib
        from msm.configs.rules import check as config_check
        from msm.infra import at_hand
        from msm.modes import joining

        gc.enable()
        command_line.use_cache(FLAGS.cache)
        joining.require_agreement({name: FLAGS[name].value for name in ("mode", "workdir")}, FLAGS.config, FLAGS.cache)
        with processes.together():
            config_check.check(FLAGS.config, FLAGS.mode)
        told = " ".join(["python", *sys.argv])
        modes = {"eval": run_lib.evaluate, "tune": run_lib.tune, "sample": run_lib.sample}
        with at_hand.workdir(FLAGS.workdir, FLAGS.mode) as folder:
            if FLAGS.mode == "train":
                run_lib.train(FLAGS.config, folder)
            else:
                modes[FLAGS.mode](FLAGS.config, folder, told)
            processes.wait_for_all()


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)  # until the run's own log is set up: libraries chatter while they load
    try:
        run()
    except UserError as error:
        if FLAGS.debug:
            raise
        command_line.tell(error)
        from msm.infra import processes

        processes.leave(2, error.everywhere)
    except Stopped as stopped:
        sys.exit(stopped.status)


def start() -> None:
    """The console command."""
    console.outlive()
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    start()
