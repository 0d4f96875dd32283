"""Makes a workdir for eval and sample of a published Flax checkpoint of NCSN++; no pickle is read.

  python tools/import_flax_checkpoint.py --checkpoint=checkpoint_26 \\
      --config=configs/brats240_ve.py --workdir=workdir/published
  python main.py --config=configs/brats240_ve.py --workdir=workdir/published --mode=eval

Every name and shape of the file is compared with the config's network; exchange/flax_import.py lists the names. What
they cannot tell is up to the config: the noise levels, whether images are centred, the scale of sums and outputs.
"""

from pathlib import Path

import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from msm.configs.rules import check as config_check
from msm.configs.rules import known_settings
from msm.exchange import imported
from msm.exchange.flax_import import flax_to_params, read_flax_checkpoint
from msm.experiment import build
from msm.infra import command_line
from msm.infra.errors import UserError
from msm.models.ncsnpp import NCSNpp

FLAGS = flags.FLAGS


def import_checkpoint(config: ConfigDict, checkpoint: Path, folder: Path, key: str = "params_ema") -> Path:
    """Writes the parameters of a Flax checkpoint as the averaged ones of a new workdir.

    Args:
      config: an experiment whose network is the file's, an NCSN++.
      checkpoint: the file.
      folder: the workdir to make.
      key: entry of the file with the parameters.

    Returns:
      The checkpoint's folder.

    Raises:
      UserError: the file cannot be read, does not fit the network, or is not finite; `folder` has checkpoints already.
    """
    arrays, step = read_flax_checkpoint(checkpoint, key)
    experiment = build(config)
    if not isinstance(experiment.model, NCSNpp):
        raise UserError(f"model.name is {config.model.name!r}: Flax checkpoints are read for 'ncsnpp' only")
    params = flax_to_params(arrays, experiment.model, experiment.template_params())
    if bad := [name for name, value in arrays.items() if not np.isfinite(value).all()]:
        raise UserError(f"checkpoint {checkpoint}: {', '.join(bad[:5])} not finite ({len(bad)} arrays): a failed run's")
    return imported.write_workdir(config, params, folder, checkpoint, step, {"key": key})


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    config_check.check(FLAGS.config)
    print(import_checkpoint(FLAGS.config, Path(FLAGS.checkpoint), Path(FLAGS.workdir), FLAGS.key))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The experiment that the checkpoint belongs to.")
    flags.DEFINE_string("checkpoint", None, "The file, e.g. checkpoint_26.")
    flags.DEFINE_string("workdir", None, "Folder to make.")
    flags.DEFINE_string("key", "params_ema", "Entry of the file with the parameters; nested ones joined by '/'.")
    flags.mark_flags_as_required(["config", "checkpoint", "workdir"])
    command_line.start(main, settings=known_settings)
