"""Methods beside one another on one split: the same scans, and networks of the same size, data and budget.

  python benchmarks/rivals.py --config=configs/brain64_msm.py --out=workdir/rivals \
      --method=zero_filled --method=cg_sense --method=l1_wavelet --method=tv --method=msm=pretrained/brain64_msm \
      --method=ssdu=workdir/brain64_ssdu --method=a_dps=workdir/brain64_ambient,dps.mask=own \
      --method=dps=workdir/brain64_oracle --method=ddnm=workdir/brain64_oracle \
      --method=ddnm=workdir/brain64_oracle,ddnm.consistency=least_squares --tuned=workdir/tuned/tune/best.json

A method is SOLVER, or SOLVER=FOLDER with the workdir of its network, and settings of its own after commas. Network,
loss and `ssdu` are those of the folder's config.json, all else --config's: split, task, number of samples, settings of
solvers. --tuned may be given several times: best.json of --mode=tune, whose hyper-parameters its solvers take.

Writes rivals.csv (one line per method, added as it is measured: a second start goes on; other settings need another
--out) and rivals.md into --out and prints the latter: PSNR and SSIM of the mean of the samples, mean +- standard error
over slices; network calls per scan, and how many of them are differentiated, which costs about twice a call more;
seconds per slice without compilation; memory of the compiled program for a batch of `eval.batch_size`.
"""

import ast
from pathlib import Path

import jax
import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from msm import datasets
from msm.benchmarks import measuring
from msm.configs.rules import check as config_check
from msm.configs.rules import known_settings, stored
from msm.experiment import Experiment
from msm.infra import checkpoints, command_line
from msm.infra.atomic import atomic_write_text
from msm.infra.errors import UserError
from msm.modes import tuned
from msm.solvers import get_solver

FLAGS = flags.FLAGS
OF_THE_NETWORK = ("model", "denoiser", "schedule", "transform", "loss", "ssdu")
HEADINGS = {
    "method": "method", "psnr": "PSNR (dB)", "ssim": "SSIM", "calls": "network calls", "gradients": "differentiated",
    "seconds": "s per slice", "megabytes": "MB",
}  # fmt: skip


def parse_method(text: str) -> tuple[str, str, dict[str, object]]:
    """Returns (solver, folder or '', {setting: value}) of 'SOLVER=FOLDER,section.name=value,...'.

    Raises UserError for what is written otherwise.
    """
    method, *changes = text.split(",")
    solver, _, folder = method.partition("=")
    settings = {}
    for change in changes:
        name, sign, value = change.partition("=")
        if not sign or name.count(".") != 1:
            raise UserError(f"--method={text}: {change!r} is not of the form section.name=value")
        try:
            settings[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):  # a word
            settings[name] = value
    return solver, folder, settings


def config_for(given, solver: str, folder: str, changes):
    """`given` with the network of `folder` and the method's own settings. Raises UserError where they do not fit."""
    config = given.copy_and_resolve_references()
    if folder:
        trained = stored.config_of(folder)
        for section in OF_THE_NETWORK:
            config[section] = trained[section]
        config.data.acquisition = trained.data.acquisition  # of the training; eval.acquisition is what is reconstructed
    for name, value in changes.items():
        section, key = name.split(".")
        if section not in config or key not in config[section]:
            raise UserError(f"--method: {name} is not a setting of configs/default.py")
        config[section][key] = value
    config.eval.solvers = (solver,)
    config_check.check(config, "eval")
    return config


def measure(config, solver_name: str, folder: str, paths: list[str], batches) -> dict[str, str]:
    """The row of one method, without its name."""
    experiment = Experiment.for_task(config)
    solver = get_solver(config, experiment, solver_name)
    for path in paths:
        if tuned.has(path, solver_name):
            solver = tuned.apply(path, {solver_name: solver})[solver_name]
    if solver.nfe and not folder:
        raise UserError(f"--method={solver_name} calls a network: name its workdir, --method={solver_name}=FOLDER")
    params = checkpoints.load_ema_params(folder, experiment.template_params())[0] if solver.nfe else None
    found = measuring.measure(solver, jax.random.key(config.seed), params, batches)

    def with_error(values: np.ndarray, digits: int) -> str:
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        return f"{np.mean(values):.{digits}f} +- {error:.{digits}f}"

    return {
        "psnr": with_error(found.psnr, 2),
        "ssim": with_error(found.ssim, 3),
        "calls": str(solver.nfe * solver.num_samples),
        "gradients": str(solver.gradients * solver.num_samples),
        "seconds": f"{found.seconds:.3g}",
        "megabytes": f"{found.megabytes:.3g}",
    }


def as_markdown(rows) -> str:
    """The table as Markdown."""
    lines = [HEADINGS.values(), ["---"] * len(HEADINGS), *([row[key] for key in HEADINGS] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    out = Path(FLAGS.out)
    methods = {text: parse_method(text) for text in FLAGS.method}
    configs = {text: config_for(FLAGS.config, *method) for text, method in methods.items()}  # all mistakes come first
    out.mkdir(parents=True, exist_ok=True)
    found = measuring.read_table(out / "rivals.csv", "method")
    measuring.check_same(out, FLAGS.config, found, [Path(path).read_text() for path in FLAGS.tuned])
    settings = FLAGS.config.eval
    batches = list(datasets.eval_batches(FLAGS.config, settings.split, settings.batch_size, settings.max_examples))
    for text, (solver, folder, _) in methods.items():
        if text in found:
            continue
        found[text] = {"method": text, **measure(configs[text], solver, folder, FLAGS.tuned, batches)}
        measuring.write_table(out / "rivals.csv", found.values())
        print(found[text], flush=True)
    table = as_markdown(found[text] for text in methods)
    atomic_write_text(out / "rivals.md", table)
    print(table)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Split, task and settings of the solvers.")
    flags.DEFINE_multi_string("method", None, "SOLVER or SOLVER=FOLDER, and ,section.name=value; once per method.")
    flags.DEFINE_multi_string("tuned", [], "best.json of --mode=tune.")
    flags.DEFINE_string("out", None, "Folder for rivals.csv and rivals.md.")
    flags.mark_flags_as_required(["config", "method", "out"])
    command_line.start(main, settings=known_settings)
