"""Quality against network calls: the sampler's switches, one after the other, on one network and one split.

  python benchmarks/quality_vs_nfe.py --config=configs/brain64_msm.py \
      --checkpoint=pretrained/brain64_msm --out=workdir/nfe --config.eval.split=validation

Writes front.csv (one line per setting, added as it is measured: a second start goes on; other settings need another
--out) and front.png into --out, and prints the table. Calls are all network calls of a scan: levels x masks x samples.
PSNR and SSIM of the mean of the samples, mean over the slices of `eval.split` of the config; seconds per slice without
compilation.
"""

from pathlib import Path

import jax
import numpy as np
from absl import flags, logging
from matplotlib.figure import Figure
from ml_collections import config_flags

from msm import datasets
from msm.benchmarks import measuring
from msm.configs.rules import check as config_check
from msm.configs.rules import known_settings
from msm.configs.tasks import PUBLISHED_IMAGES, PUBLISHED_MRI
from msm.experiment import Experiment, build
from msm.infra import checkpoints, command_line, rounds
from msm.solvers import get_solver

FLAGS = flags.FLAGS

# name -> (number of samples, switches of config.solver); what is not named is WHOLE, or the default of the config
WHOLE = {"w": 1, "mask_keep": 1.0}  # one call a level, of the whole measurement
FLOW = {"step": "ddim", "eta": 0.0}  # the probability flow: no fresh noise
QUIET = {"step": "plug_and_play"}  # no noise at all
FAST = {**QUIET, "start_sigma": 0.3}  # solver msm_fast
Settings = dict[str, tuple[int, dict]]
LEVELS: Settings = {
    **{f"{n} levels x 4 samples": (4, {"num_levels": n}) for n in (5, 10, 15, 30, 50, 150)},
    **{f"{n} levels x 1 sample": (1, {"num_levels": n}) for n in (20, 60, 200)},
    "5 levels x 12 samples": (12, {"num_levels": 5}),
    "50 levels x 12 samples": (12, {"num_levels": 50}),
}
STEPS: Settings = {
    "ddim, eta 1, 15 x 4": (4, {"num_levels": 15, "step": "ddim"}),
    "ddim, eta 1, order 2, 15 x 4": (4, {"num_levels": 15, "step": "ddim", "order": 2}),
    **{f"ddim, eta 0, {n} x 1": (1, {"num_levels": n, **FLOW}) for n in (20, 60)},
    "ddim, eta 0, order 2, 20 x 1": (1, {"num_levels": 20, **FLOW, "order": 2}),
    "renoise, eta 0.85, 15 x 4": (4, {"num_levels": 15, "eta": 0.85}),
}
WARM: Settings = {
    **{f"start {s:g}, 5 x 4": (4, {"num_levels": 5, "start_sigma": s}) for s in (0.3, 1.0, 3.0)},
    "start 0.3, 15 x 4": (4, {"num_levels": 15, "start_sigma": 0.3}),
}
NOISELESS: Settings = {
    **{f"no noise, {n}": (1, {"num_levels": n, **QUIET}) for n in (5, 10, 20, 40)},
    **{f"no noise, start 0.3, {n}": (1, {"num_levels": n, **FAST}) for n in (5, 10, 20, 40)},
    **{f"no noise, start {s:g}, 20": (1, {"num_levels": 20, **QUIET, "start_sigma": s}) for s in (0.1, 1.0, 3.0)},
    "no noise, start 0.3, order 2, 20": (1, {"num_levels": 20, **FAST, "order": 2}),
}
CONSISTENCY: Settings = {
    **{f"damping {d:g}, 15 x 4": (4, {"num_levels": 15, "damping": d}) for d in (0.25, 4.0)},
    **{f"no noise, start 0.3, damping {d:g}, 20": (1, {"num_levels": 20, **FAST, "damping": d}) for d in (0.5, 2.0)},
    "no noise, start 0.3, pseudo-inverse, 20": (1, {"num_levels": 20, **FAST, "consistency": "pseudo_inverse"}),
}
DRAWN = {"w": 3, "mask_keep": 0.0}  # masks as in training, three a level
MASKS: Settings = {
    **{f"masks of p(S), w 3, {n} x 1": (1, {"num_levels": n, **DRAWN}) for n in (7, 20, 200)},
    **{f"masks of p(S), w 3, {n} x 4": (4, {"num_levels": n, **DRAWN}) for n in (5, 17, 50)},
    "masks of p(S), w 3, complement, 20 x 1": (1, {"num_levels": 20, **DRAWN, "mask_order": "complement"}),
    "masks of p(S), w 3, reinject, 20 x 1": (1, {"num_levels": 20, **DRAWN, "reinject": True}),
    **{
        f"masks of p(S), w 3, ddim, eta {e:g}, 20 x 1": (1, {"num_levels": 20, **DRAWN, **FLOW, "eta": e})
        for e in (0, 1)
    },
}
ONE = {"w": 1, "mask_keep": 0.0, **QUIET}
MASKS_NOISELESS: Settings = {
    **{
        f"one mask of p(S), no noise, start {s:g}, {n}": (1, {"num_levels": n, **ONE, "start_sigma": s})
        for n, s in ((20, 0.3), (60, 0.3), (20, 0.5), (40, 0.5), (60, 0.5), (600, 0.5), (20, 1.0), (60, 1.0))
    },
    "one mask of p(S), no noise, start 1, order 2, 60": (1, {"num_levels": 60, **ONE, "start_sigma": 1.0, "order": 2}),
    **{
        f"one mask of p(S), no noise, start 0.5, damping {d:g}, 60": (
            1,
            {"num_levels": 60, **ONE, "start_sigma": 0.5, "damping": d},
        )
        for d in (0.5, 2.0)
    },
    "one mask of p(S), no noise, 60": (1, {"num_levels": 60, **ONE}),
    "masks of p(S), w 3, no noise, start 1, 20": (1, {"num_levels": 20, **DRAWN, **QUIET, "start_sigma": 1.0}),
}
PUBLISHED = {  # of scans and of images
    which: {"published form": (1, switches), "published form, batched": (1, {**switches, "reinject": False})}
    for which, switches in (("scans", PUBLISHED_MRI), ("images", PUBLISHED_IMAGES))
}
FAMILIES = {
    "levels": LEVELS,
    "steps": STEPS,
    "warm start": WARM,
    "no noise": NOISELESS,
    "consistency": CONSISTENCY,
    "masks of p(S)": MASKS,
    "masks, no noise": MASKS_NOISELESS,
}


def families(config) -> dict[str, Settings]:
    return {**FAMILIES, "published": PUBLISHED["scans" if config.data.num_coils else "images"]}


def measure(config, params, batches, num_samples: int, switches: dict, name: str = "msm") -> dict[str, float]:
    """PSNR, SSIM, network calls and seconds per slice of a solver with `switches` of config.solver."""
    config = config.copy_and_resolve_references()
    config.eval.num_samples = num_samples
    config.solver.update(switches)
    config_check.check(config)
    solver = get_solver(config, Experiment.for_task(config), name)
    found = measuring.measure(solver, jax.random.key(config.seed), params, batches)
    return {
        "calls": solver.nfe * num_samples,
        "psnr": float(np.mean(found.psnr)),
        "ssim": float(np.mean(found.ssim)),
        "seconds": found.seconds,
    }


def front_plot(found: dict[str, dict[str, str]], grouped: dict[str, Settings], path: Path) -> None:
    """Writes a picture: PSNR and SSIM of every setting over its network calls, one colour and mark per family.

    The settings that nothing with as few calls beats are named.
    """
    figure = Figure(figsize=(13, 5.4), dpi=110, layout="constrained")
    for place, (column, name) in enumerate({"psnr": "PSNR (dB)", "ssim": "SSIM"}.items(), start=1):
        axes = figure.add_subplot(1, 2, place)
        for mark, (family, settings) in zip("osD^vP*", grouped.items(), strict=False):
            rows = [found[setting] for setting in settings if setting in found]
            axes.plot([float(r["calls"]) for r in rows], [float(r[column]) for r in rows], mark, ms=6, label=family)
        best = -np.inf
        for row in sorted(found.values(), key=lambda row: (float(row["calls"]), -float(row[column]))):
            if float(row[column]) > best:
                best = float(row[column])
                place_text = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center", "fontsize": 9}
                axes.annotate(row["setting"], (float(row["calls"]), best), **place_text)
        axes.set_xscale("log")
        axes.set_xlabel("network calls per scan", fontsize=12)
        axes.set_ylabel(name, fontsize=12)
        values = [float(row[column]) for row in found.values()]
        if len(values) > 20:  # a setting that fails would squeeze the others
            axes.set_ylim(bottom=np.quantile(values, 0.02) - 0.03 * np.ptp(values))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=11)
    figure.savefig(path)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    config, out = FLAGS.config, Path(FLAGS.out)
    config_check.check(config)
    params, _ = checkpoints.load_ema_params(FLAGS.checkpoint, build(config).template_params())
    split, size, limit = config.eval.split, config.eval.batch_size, config.eval.max_examples
    batches = list(datasets.eval_batches(config, split, size, limit))
    out.mkdir(parents=True, exist_ok=True)
    path = out / "front.csv"
    found = measuring.read_table(path, "setting")
    measuring.check_same(out, config, found, rounds.checksum(params))
    grouped = families(config)
    settings = {name: how for family in grouped.values() for name, how in family.items()}
    for name, (num_samples, switches) in settings.items():
        if name in found or not any(wanted in name for wanted in FLAGS.only):
            continue
        figures = measure(config, params, batches, num_samples, {**WHOLE, **switches})
        found[name] = {"setting": name, **{key: f"{value:.4f}" for key, value in figures.items()}}
        measuring.write_table(path, found.values())
        print(found[name], flush=True)
    front_plot(found, grouped, out / "front.png")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The run's config.")
    flags.DEFINE_string("checkpoint", None, "Folder of the network's checkpoint.")
    flags.DEFINE_string("out", None, "Folder for front.csv and front.png.")
    flags.DEFINE_multi_string("only", [""], "Measure only settings whose name holds this; may be given several times.")
    flags.mark_flags_as_required(["config", "checkpoint", "out"])
    command_line.start(main, settings=known_settings)
