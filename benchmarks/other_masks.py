"""Masks that the network was not trained on, without retraining: every solver of `eval.solvers` on each.

  python benchmarks/other_masks.py --config=configs/brain64_msm.py --checkpoint=pretrained/brain64_msm \
      --config.eval.max_examples=8 --config.eval.num_samples=2 --config.solver.num_levels=15

The references of `eval.split` are measured anew (task cs_mri) with `--config.task.noise_std`, at the ACS lines of the
training masks. Prints effective acceleration, and PSNR / SSIM of the mean of the samples, mean over the slices.
Another matrix size is another store: --config.data.dir and image_size, --config.masks.acs_lines in proportion
and, where the network has attention, its sizes: 12 in place of 8 for 96 x 96 in place of 64 x 64
(`models.levels.attention_at`; tools/reconstruct.py does both by itself).
"""

import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from msm import datasets
from msm.benchmarks.quality_vs_nfe import measure
from msm.configs.rules import check as config_check
from msm.configs.rules import known_settings
from msm.experiment import build
from msm.infra import checkpoints, command_line

FLAGS = flags.FLAGS
CASES = {  # masks of `operators/masks.py`, nominal R
    "random R 4": ("cartesian_random", 4.0),
    "random R 3": ("cartesian_random", 3.0),
    "random R 6": ("cartesian_random", 6.0),
    "equispaced R 4": ("cartesian_equispaced", 4.0),
    "partial Fourier R 4": ("cartesian_partial_fourier", 4.0),
    "variable density R 4": ("cartesian_variable_density", 4.0),
    "Poisson disc R 4": ("cartesian_poisson_disc", 4.0),
    "Poisson disc R 6": ("cartesian_poisson_disc", 6.0),
}


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    config = FLAGS.config
    config.task.name, config.task.acs_lines = "cs_mri", config.masks.acs_lines
    config_check.check(config)
    params, _ = checkpoints.load_ema_params(FLAGS.checkpoint, build(config).template_params())
    print(f"{'masks':<24}{'R':>6}" + "".join(f"{solver:>16}" for solver in config.eval.solvers))
    for label, (name, acceleration) in CASES.items():
        if not any(wanted in label for wanted in FLAGS.only.split(",")):
            continue
        config.task.masks, config.task.acceleration = name, acceleration
        chosen = config.eval.split, config.eval.batch_size, config.eval.max_examples
        batches = list(datasets.eval_batches(config, *chosen))
        effective = 1 / np.mean([batch.measurement.mask.mean() for batch in batches])
        print(f"{label:<24}{effective:>6.2f}", end="", flush=True)
        for solver in config.eval.solvers:
            found = measure(config, params, batches, config.eval.num_samples, {}, solver)
            print(f"{found['psnr']:>9.2f} {found['ssim']:.3f} ", end="", flush=True)
        print()


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The run's config.")
    flags.DEFINE_string("checkpoint", None, "Folder of the network's checkpoint.")
    flags.DEFINE_string("only", "", "Measure only masks whose label holds one of these, separated by commas.")
    flags.mark_flags_as_required(["config", "checkpoint"])
    command_line.start(main, settings=known_settings)
