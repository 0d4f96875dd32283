"""The package beside others: its names clash with none, and what is installed is enough."""

import shutil
import subprocess
import sys
import tomllib

from tests.helpers.paths import ROOT


def run(code, folder, *paths):
    """Runs Python in a folder whose modules come first, as a script's do."""
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(p) for p in (folder, *paths)]!r}; {code}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)


def test_packages_of_the_same_names_as_our_rooms_work_beside_it(tmp_path):
    for name in ("datasets", "metrics", "models", "losses", "solvers", "configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"OWNER = 'theirs: {name}'\n")
    code = (
        "import datasets, metrics, models, losses, solvers, configs; "
        "from msm import datasets as ours; from msm.configs.default import get_config; import msm; "
        "print(models.OWNER, '|', datasets.OWNER, '|', hasattr(ours, 'dataset_info'), '|', 'msm' in msm.solvers(), "
        "'|', sys.modules['solvers'].OWNER)"
    )
    done = run(code, tmp_path)
    assert done.stdout.strip() == "theirs: models | theirs: datasets | True | True | theirs: solvers", done.stderr


def test_what_is_installed_loads_a_checkpoint_by_path(tmp_path):
    """A folder with the packages of pyproject.toml and nothing else: no tests, no data."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    for package in settings["tool"]["setuptools"]["packages"]:
        place = site.joinpath(*package.split("."))
        place.mkdir(parents=True)
        for path in ROOT.joinpath(*package.split(".")[1:]).glob("*.py"):
            shutil.copy(path, place)
    code = f"import msm; print(msm.load({str(ROOT / 'pretrained/brain64_msm')!r}).of_images, msm.__file__)"
    done = run(code, empty, site)
    assert done.stdout.split() == ["False", str(site / "msm" / "__init__.py")], done.stderr
    for place in settings["project"]["scripts"].values():
        module, function = place.split(":")
        assert f"def {function}(" in site.joinpath(*module.split(".")).with_suffix(".py").read_text(), place
