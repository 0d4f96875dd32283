"""How well a trained network denoises at each noise level, on whole measurements and on those that a mask keeps.

  python benchmarks/denoising_error.py --config=configs/photos64_msm.py --workdir=workdir/photos64_msm

Prints the root mean square of (s0_hat - s) / sigma over the entries that the network was given, 1 being an estimate as
noisy as its input: 16 references, evenly spread over the split, averaged parameters of the newest checkpoint. Samples
can only be as clean as these numbers are small.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from msm import datasets
from msm.configs.rules import check as config_check
from msm.configs.rules import known_settings
from msm.experiment import build
from msm.infra import checkpoints, command_line
from msm.losses import observed_scalars, real_mean
from msm.operators.operator import per_example
from msm.operators.randomness import draw_noise, example_keys

FLAGS = flags.FLAGS
SIGMAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
COUNT = 16


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    config = FLAGS.config
    config_check.check(config)
    experiment = build(config)
    schedule, transform = experiment.schedule, experiment.transform
    params, step = checkpoints.load_ema_params(FLAGS.workdir, experiment.template_params())
    (example,) = datasets.eval_batches(config, config.eval.split, COUNT, COUNT)
    maps, keys = example.measurement.maps, example_keys(jax.random.key(config.seed), example.measurement.example_id)
    z = transform.forward(jnp.asarray(example.reference), maps)
    noise, drawn = draw_noise(transform, keys, z.shape), jax.vmap(experiment.masks.sample)(keys)

    @jax.jit
    def error(params, sigma, mask):
        t = jnp.broadcast_to(schedule.level(sigma), COUNT)
        s_t = jnp.where(mask, per_example(schedule.alpha(t), z) * (z + sigma * noise), 0)
        missed = jnp.where(mask, experiment.denoise(params, s_t, mask, maps, t).s0 - z, 0) / sigma
        return jnp.sqrt(jnp.mean(real_mean(missed, missed, observed_scalars(transform, mask, z.shape))))

    print(f"{FLAGS.workdir}, step {step}\n| sigma | whole | masks of p(S) |\n|---|---|---|")
    for sigma in SIGMAS:
        found = [float(error(params, jnp.float32(sigma), mask)) for mask in (jnp.ones_like(drawn), drawn)]
        print(f"| {sigma:g} | " + " | ".join(f"{np.round(value, 3):.3f}" for value in found) + " |")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The run's config.")
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.mark_flags_as_required(["config", "workdir"])
    command_line.start(main, settings=known_settings)
