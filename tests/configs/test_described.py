"""What --help and --help_settings say: every setting with default, rule and meaning, and the names of elsewhere."""

import subprocess
import sys

import pytest

from msm.configs.default import get_config
from msm.configs.rules import described
from msm.configs.rules.settings import OPTIONAL, SETTINGS
from msm.infra.errors import UserError
from tests.helpers.paths import ROOT


def test_every_setting_is_described_once_with_its_default():
    found = [setting for section in described.sections() for setting in described.describe(section)]
    assert sorted(setting.name for setting in found) == sorted(SETTINGS)
    config = get_config()
    for setting in found:
        value = config
        if setting.name in OPTIONAL:
            continue
        for part in setting.name.split("."):
            value = value[part]
        assert setting.default == repr(value) and setting.must_be and setting.meaning, setting.name


def test_meanings_are_those_beside_the_defaults():
    meanings = {setting.name: setting.meaning for setting in described.describe("eval")}
    assert meanings["eval.num_samples"] == "posterior samples per scan"
    assert meanings["eval.metrics"].endswith('"clipped", "disc", "disc_histogram", "mar" (score-SDE)')  # a second line
    assert described.describe("seed")[0].meaning.startswith("of initialisation")


def test_a_single_setting_and_an_unknown_section():
    assert [setting.name for setting in described.describe("optim.ema_rate")] == ["optim.ema_rate"]
    with pytest.raises(UserError, match="did you mean 'optim'"):
        described.describe("optimm")


def test_aliases_name_settings_that_exist():
    assert set(described.ALIASES.values()) <= set(SETTINGS) and set(described.NOTES) <= set(SETTINGS)
    assert described.alias("lr") == "here it is --config.optim.learning_rate=VALUE"
    assert "steps" in described.alias("num-epochs") and described.alias("zzz") == ""


def test_help_says_modes_the_settings_used_most_and_where_the_rest_is():
    assert len(described.MOST_USED) == 10
    done = subprocess.run([sys.executable, "main.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == ""
    for mode in ("train", "eval", "tune", "sample"):
        assert f"\n  {mode} " in done.stdout
    for name in (*(f"--config.{name}=" for name in described.MOST_USED), "--workdir", "--config ", "--help_settings"):
        assert name in done.stdout
    assert len(done.stdout.splitlines()) < 70


SMOKE = "--config=configs/brain64_msm.py:smoke"
ANSWERS = {
    f"{SMOKE} --lr=1": "--lr is no flag: here it is --config.optim.learning_rate=VALUE",
    f"{SMOKE} --config.optim.lr=0.1 --config.epochs=3 --config.evl.batch_size=2": (
        "optim.lr is not a setting of configs/default.py: here it is --config.optim.learning_rate=VALUE\n"
        "epochs is not a setting of configs/default.py: here it is --config.training.num_steps=VALUE (it counts "
        "steps; an epoch is as many as the store has examples over training.batch_size)\n"
        "evl.batch_size is not a setting of configs/default.py; did you mean 'eval.batch_size'?"
    ),
    "--config=brain64_msm:smoke": "--config brain64_msm does not exist: write --config=configs/brain64_msm.py:smoke",
    "--help_settings optm": (
        "optm is no section of settings; did you mean 'optim'? (there are " + ", ".join(described.sections()) + ")"
    ),
    f"{SMOKE} --config.data.dir=store/none": (
        "store/none/manifest.json is missing; make the store: python tools/prepare_demo.py --size 64 "
        "--num_coils 4 --mask cartesian_random --acceleration 4 --acs_lines 6 --out store/none"
    ),
}


@pytest.mark.parametrize("given", ANSWERS)
def test_mistakes_are_answered_by_what_was_meant(given, tmp_path):
    command = [sys.executable, "main.py", *given.split(), f"--workdir={tmp_path}/run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [f"error: {line}" for line in ANSWERS[given].splitlines()]
    assert not (tmp_path / "run").exists()
