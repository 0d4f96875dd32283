"""Puts evaluations of several runs side by side as a Markdown table: mean +- standard error over slices, and gains.

  python tools/compare_runs.py workdir/oracle/csmri4 workdir/msm/csmri4 workdir/noisy/csmri4
  python tools/compare_runs.py --solver=msm --metrics=psnr,ssim,nmse workdir/*/eval

Each argument is an evaluation folder (with metrics.csv). The last column is the first metric's mean difference from the
first folder on the same slices, with its standard error: it tells small differences from the spread between slices.
"""

import csv
import json
import math
from pathlib import Path
from typing import Any

from absl import flags

from msm.evaluation import summary as evaluation
from msm.infra import command_line
from msm.infra.errors import UserError
from msm.infra.registry import nearest

FLAGS = flags.FLAGS
OF_A_RUN = (
    "title",
    "notes",
    "command",
    "checkpoint",
    "training step",
    "checkpoint warning",
    "split",
)  # differ between any two runs
DIGITS = {"psnr": 2, "psnr_paper": 2, "nmse": 4, "seconds": 2}  # 3 for all others


def read_rows(folder: Path, solver: str) -> list[dict[str, Any]]:
    """Returns the rows of one solver in a folder's metrics.csv, numbers as floats, empty cells left out.

    Raises:
      UserError: no such file, or the solver is not in it.
    """
    path = folder / "metrics.csv"
    try:
        with open(path, newline="") as file:
            found = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error):
        found = []  # told below
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): run main.py --mode eval first") from error
    if not found or not {"solver", "example_id"} <= set(found[0]):
        raise UserError(f"{path} is not what main.py --mode eval writes: name an evaluation folder")
    known = dict.fromkeys(row["solver"] for row in found)
    if solver not in known:
        raise UserError(f"{path} has no solver {solver!r}{nearest(solver, known)} (known: {', '.join(known)})")
    rows = []
    for row in found:
        if row["solver"] == solver:
            given = {k: v for k, v in row.items() if k not in ("solver", "example_id", "volume") and v != ""}
            try:
                numbers = {k: float(v) for k, v in given.items()}
                rows.append({"example_id": int(row["example_id"]), "solver": str(folder)} | numbers)
            except (ValueError, TypeError) as error:  # also of a line that is cut or too long
                raise UserError(
                    f"{path}, example {row['example_id']} of {solver}: {error}; it is damaged: evaluate again"
                ) from error
    return rows


def differing_facts(folders: list[Path], solver: str) -> list[str]:
    """Returns what summary.json of the folders says differently about the measurements and the solver, a line each.

    Gains between other tasks, noise levels or numbers of samples compare more than the networks. Folders without a
    summary are passed over.
    """
    facts: dict[str, dict[str, str]] = {}
    for folder in folders:
        try:
            summary = json.loads((folder / "summary.json").read_text())
        except (OSError, json.JSONDecodeError):
            continue
        known = {name: value for name, value in summary["run"].items() if name not in OF_A_RUN}
        known["hyper-parameters"] = known.get("hyper-parameters", {}).get(solver)
        known["network calls"] = summary["solvers"][solver]["nfe"]
        known["samples"] = summary["solvers"][solver]["num_samples"]
        for name, value in known.items():
            facts.setdefault(name, {})[str(folder)] = json.dumps(value)
    return [
        f"{name} differs: " + ", ".join(f"{value} in {folder}" for folder, value in told.items())
        for name, told in facts.items()
        if len(set(told.values())) > 1
    ]


def _cell(entry: dict[str, Any], digits: int, sign: str = "") -> str:
    error = entry["standard_error"]
    spread = "" if math.isnan(error) else f" +- {error:.{digits}f}"
    return f"{entry['mean']:{sign}.{digits}f}{spread}"


def compare(folders: list[Path], solver: str, metrics: list[str]) -> str:
    """Returns the table.

    Raises:
      UserError: see `read_rows`; a metric is missing; or the folders hold different slices.
    """
    rows = [row for folder in folders for row in read_rows(folder, solver)]
    table = evaluation.aggregate(rows)
    for folder in folders:
        if missing := [name for name in metrics if name not in table[str(folder)]]:
            known = ", ".join(table[str(folder)])
            hint = nearest(missing[0], table[str(folder)])
            raise UserError(f"{folder / 'metrics.csv'} has no {', '.join(missing)} of {solver}{hint} (known: {known})")
    first, lead = str(folders[0]), metrics[0]
    lines = ["| " + " | ".join(["run", "slices", *metrics, f"{lead}, difference from the first"]) + " |"]
    lines.append("|" + "---|" * (len(metrics) + 3))
    for folder in folders:
        entry = table[str(folder)]
        cells = [str(folder), str(entry[lead]["n"]), *(_cell(entry[name], DIGITS.get(name, 3)) for name in metrics)]
        gain = evaluation.paired_difference(rows, str(folder), first, lead)
        cells.append("" if str(folder) == first else _cell(gain, DIGITS.get(lead, 3), "+"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise UserError("name at least one evaluation folder, e.g. workdir/brain64/eval")
    folders = [Path(name) for name in argv[1:]]
    print(compare(folders, FLAGS.solver, list(FLAGS.metrics)))
    for line in differing_facts(folders, FLAGS.solver):
        print(f"note: {line}")


if __name__ == "__main__":
    flags.DEFINE_string("solver", "msm", "Whose results are compared.")
    flags.DEFINE_list("metrics", ["psnr", "ssim", "nmse"], "Columns of metrics.csv; the first one's gains are shown.")
    command_line.start(main, names=True)
