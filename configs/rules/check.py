"""Checks a whole config before anything is built: what each setting must be, and which settings must fit each other."""

from typing import Any

from ml_collections import ConfigDict

from msm.configs.default import get_config
from msm.configs.rules.combinations import COMBINATIONS
from msm.configs.rules.settings import OPTIONAL, SETTINGS
from msm.infra.errors import UserError
from msm.infra.registry import nearest


def _flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value})
    return flat


def find_problems(config: ConfigDict, mode: str = "") -> list[str]:
    """Returns every problem of a config, one line each; an empty list if it is sound. `mode`: '' for those of all."""
    values = _flat(config)
    problems = {}
    for path, rule in SETTINGS.items():
        if path in values:
            problems[path] = rule.problem(path, values[path])
        elif path not in OPTIONAL:
            problems[path] = f"{path} is missing: start the config from configs/default.py"
    known = {**SETTINGS, **_flat(get_config())}
    for path in sorted(values.keys() - known.keys()):
        problems[path] = f"{path} is not a setting of configs/default.py{nearest(path, known)}"
    wrong = {path for path, problem in problems.items() if problem}
    looked_at = [c for c in COMBINATIONS if mode in ("", c.mode) or not c.mode]
    fits = [combination.problem(config) for combination in looked_at if not wrong.intersection(combination.paths)]
    return [problem for problem in (*problems.values(), *fits) if problem]


def check(config: ConfigDict, mode: str = "") -> None:
    """Raises UserError that tells every problem of the config, one line each, before anything is built or compiled.

    `mode`: of main.py, of whose batch size alone it matters whether it fits the devices; '' for all.
    """
    problems = find_problems(config, mode)
    if problems:
        raise UserError("\n".join(problems))
