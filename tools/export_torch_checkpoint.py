"""Writes the averaged parameters of a run as a PyTorch state dict with the authors' names; needs no PyTorch.

  python tools/export_torch_checkpoint.py --config=configs/ffhq128_msm_p04.py --workdir=workdir/ffhq128 --out=model.pt

Their code loads the file as it is, and so does torch.load("model.pt", weights_only=True). It samples with the denoiser
'eps' and 'adjoint' and the schedule 'ddpm'; a network trained otherwise is exported all the same, with a warning.
"""

from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from msm.configs.rules import check as config_check
from msm.configs.rules import known_settings, stored
from msm.exchange.torch_files import write_state_dict
from msm.exchange.torch_import import params_to_state_dict
from msm.experiment import build
from msm.infra import checkpoints, command_line
from msm.infra.errors import UserError

FLAGS = flags.FLAGS
THEIRS = {"denoiser.parametrization": "eps", "denoiser.sandwich": "adjoint", "schedule.name": "ddpm"}


def export_checkpoint(config: ConfigDict, folder: Path, out: Path, step: int | None = None) -> list[str]:
    """Writes `out`; returns the settings, "name value", with which the network means something else to their code.

    Args:
      config: the run's.
      folder: workdir, or folder made by tools/export_checkpoint.py or import_torch_checkpoint.py.
      out: the `.pt` file to write.
      step: which checkpoint; None: the newest.

    Raises:
      UserError: no such checkpoint, it belongs to another config, or the network has no equal in their code.
    """
    if config.model.name != "adm" or config.model.patch_size != 1:
        network = f"model.name {config.model.name!r} with model.patch_size {config.model.patch_size}"
        raise UserError(f"{network} has no equal in the authors' code, which has adm with patch_size 1 only")
    stored.check_checkpoint_config(folder, config)
    params, _ = checkpoints.load_ema_params(folder, build(config).template_params(), step)
    write_state_dict(out, params_to_state_dict(params))
    settings = {name: config[name.split(".")[0]][name.split(".")[1]] for name in THEIRS}
    return [f"{name} {value}" for name, value in settings.items() if value != THEIRS[name]]


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    config_check.check(FLAGS.config)
    differing = export_checkpoint(FLAGS.config, Path(FLAGS.workdir), Path(FLAGS.out), FLAGS.step)
    if differing:
        print(f"note: trained with {', '.join(differing)}; the authors' code would use it as something else")
    print(FLAGS.out)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The run's config.")
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("out", None, "The .pt file to write.")
    flags.DEFINE_integer("step", None, "Which checkpoint; the newest if not given.", lower_bound=0)
    flags.mark_flags_as_required(["config", "workdir", "out"])
    command_line.start(main, settings=known_settings)
