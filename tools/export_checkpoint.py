"""Writes the averaged parameters of a run as a small checkpoint to share, with the config that they belong to.

python tools/export_checkpoint.py --config=configs/brain64_msm.py --workdir=workdir/brain64 --out=pretrained/brain64_msm
"""

import os

from absl import flags, logging
from ml_collections import config_flags

from msm.configs.rules import check as config_check
from msm.configs.rules import known_settings, stored
from msm.experiment import build
from msm.infra import checkpoints, command_line
from msm.infra.atomic import atomic_write_json

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "The run's config.")
flags.DEFINE_string("workdir", None, "Folder of the run.")
flags.DEFINE_string("out", None, "Folder to write; use it as --config.eval.checkpoint.")
flags.DEFINE_integer("step", None, "Which checkpoint; the newest if not given.", lower_bound=0)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    config_check.check(FLAGS.config)
    stored.check_checkpoint_config(FLAGS.workdir, FLAGS.config)
    template = build(FLAGS.config).template_params()
    params, step = checkpoints.load_ema_params(FLAGS.workdir, template, FLAGS.step)
    path = checkpoints.export_params(FLAGS.out, params, step, {"step": step})
    atomic_write_json(os.path.join(FLAGS.out, "config.json"), FLAGS.config.to_dict())
    print(path)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir", "out"])
    command_line.start(main, settings=known_settings)
