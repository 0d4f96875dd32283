"""Makes a workdir for eval and sample of a published PyTorch checkpoint; needs no PyTorch, runs no code of the file.

  python tools/import_torch_checkpoint.py --checkpoint=ffhq_msm_p04_noise0_0_img128.pt \\
      --config=configs/ffhq128_msm_p04.py --workdir=workdir/published
  python main.py --config=configs/ffhq128_msm_p04.py --workdir=workdir/published --mode=sample

Or leave it where it is, and give other workdirs --config.eval.checkpoint=workdir/published. Every name and shape of the
file is compared with the config's network. What they cannot tell is up to the config: heads of the attention, schedule
and denoiser. The authors' trainer writes modelNNNNNN.pt and ema_0.9999_NNNNNN.pt, bare state dicts both: take the
average. Files that hold several, under names like model and ema, need --key.
"""

import re
from pathlib import Path

import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from msm.configs.rules import check as config_check
from msm.configs.rules import known_settings
from msm.exchange import imported
from msm.exchange.torch_files import read_state_dict
from msm.exchange.torch_import import drop_variances, state_dict_to_params
from msm.experiment import build
from msm.infra import command_line
from msm.infra.errors import UserError

FLAGS = flags.FLAGS


def import_checkpoint(
    config: ConfigDict, checkpoint: Path, folder: Path, key: str = "", step: int | None = None, variances: bool = False
) -> Path:
    """Writes the parameters of a PyTorch state dict as the averaged ones of a new workdir.

    Args:
      config: an experiment whose network is the file's.
      checkpoint: the `.pt` file.
      folder: the workdir to make; gets config.json, manifest.json and checkpoints/<step>.
      key: entry of the file that is the state dict; empty: the file itself.
      step: training steps behind it; None: the number in the name that the authors' trainer gives, or 0.
      variances: whether the file's network was trained with `learn_sigma`: its second half of outputs is dropped.

    Returns:
      The checkpoint's folder.

    Raises:
      UserError: the file cannot be read, does not fit the network, or is not finite; `folder` has checkpoints already.
    """
    state_dict = read_state_dict(checkpoint, key)
    if variances:
        state_dict = drop_variances(state_dict)
    params = state_dict_to_params(state_dict, config.model, build(config).template_params())
    if bad := [name for name, value in state_dict.items() if not np.isfinite(value).all()]:
        raise UserError(f"checkpoint {checkpoint}: {', '.join(bad[:5])} not finite ({len(bad)} arrays): a failed run's")
    if step is None:
        named = re.fullmatch(r"(?:model|ema_[\d.]+_)(\d+)\.pt", checkpoint.name)
        step = int(named[1]) if named else 0
    source = {"key": key, "variances_dropped": variances}
    return imported.write_workdir(config, params, folder, checkpoint, step, source)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    config_check.check(FLAGS.config)
    source, folder = Path(FLAGS.checkpoint), Path(FLAGS.workdir)
    print(import_checkpoint(FLAGS.config, source, folder, FLAGS.key, FLAGS.step, FLAGS.drop_variances))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The experiment that the checkpoint belongs to.")
    flags.DEFINE_string("checkpoint", None, "The .pt file.")
    flags.DEFINE_string("workdir", None, "Folder to make.")
    flags.DEFINE_string("key", "", "Entry of the file that is the state dict, e.g. ema; empty: the file itself.")
    flags.DEFINE_integer("step", None, "Training steps behind it; by default from the name.", lower_bound=0)
    flags.DEFINE_bool("drop_variances", False, "Drop the variances that a network trained with learn_sigma predicts.")
    flags.mark_flags_as_required(["config", "checkpoint", "workdir"])
    command_line.start(main, settings=known_settings)
