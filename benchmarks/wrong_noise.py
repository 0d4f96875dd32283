"""What a wrong noise level costs: the msm solver is told 0.5, 0.7, 1, 1.4 and 2 times the noise that the data have.

  python benchmarks/wrong_noise.py --config=configs/brain64_msm.py --checkpoint=pretrained/brain64_msm \
      --config.eval.split=validation --config.eval.num_samples=2 --config.solver.num_levels=10

Prints PSNR and SSIM of the mean of the samples, mean over the slices of the split, and their change against the true
level. Only `noise_std` of the measurement is changed; data, network and random numbers are the same in every line.
"""

import dataclasses

from absl import flags, logging
from ml_collections import config_flags

from msm import datasets
from msm.benchmarks.quality_vs_nfe import measure
from msm.configs.rules import check as config_check
from msm.configs.rules import known_settings
from msm.experiment import build
from msm.infra import checkpoints, command_line

FLAGS = flags.FLAGS


def told(batch, factor: float):
    """The batch, whose noise level is said to be `factor` times what it is."""
    measurement = batch.measurement
    return dataclasses.replace(batch, measurement=measurement.replace(noise_std=measurement.noise_std * factor))


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    config = FLAGS.config
    factors = [float(factor) for factor in FLAGS.factors]
    config_check.check(config)
    params, _ = checkpoints.load_ema_params(FLAGS.checkpoint, build(config).template_params())
    batches = list(datasets.eval_batches(config, config.eval.split, config.eval.batch_size, config.eval.max_examples))
    print(f"{'noise told / true':<20}{'PSNR (dB)':>12}{'change':>9}{'SSIM':>9}{'change':>9}")
    true = {}
    for factor in sorted({1.0, *factors}, key=lambda f: (f != 1, f)):  # the true level first: others are told from it
        found = measure(config, params, [told(b, factor) for b in batches], config.eval.num_samples, {})
        true = true or found
        psnr, ssim = found["psnr"], found["ssim"]
        changes = psnr - true["psnr"], ssim - true["ssim"]
        print(f"{factor:<20g}{psnr:>12.2f}{changes[0]:>+9.2f}{ssim:>9.3f}{changes[1]:>+9.3f}", flush=True)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The run's config.")
    flags.DEFINE_string("checkpoint", None, "Folder of the network's checkpoint.")
    flags.DEFINE_list("factors", ["0.5", "0.7", "1", "1.4", "2"], "Noise that the solver is told, over the true one.")
    flags.mark_flags_as_required(["config", "checkpoint"])
    command_line.start(main, settings=known_settings)
