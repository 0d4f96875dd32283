"""The order of the rooms: what imports what, from the ground floor up, counted by a graph of the tests' own."""

import tomllib

from tests.helpers.imports import arrows, imported_files, program_files, room_of
from tests.helpers.paths import ROOT

# From the ground up: a room imports those before it. The files of the root are rooms too.
FLOORS = (
    "infra", "sde_lib", "operators", "models", "predictor_corrector", "sampling", "losses", "optimizer",
    "builders", "datasets", "experiment", "solvers", "exchange", "evaluation", "configs", "reports", "modes",
    "run_lib", "api", "planning", "__init__", "main", "tools", "benchmarks",
)  # fmt: skip


def test_every_room_has_its_floor():
    rooms = {room_of(path) for path in program_files()}
    assert rooms <= {*FLOORS, "examples"}
    assert len(rooms) > 20


def test_arrows_between_rooms_run_down():
    drawn = arrows()
    assert len(drawn) > 80 and ("modes", "solvers") in drawn and ("configs", "solvers") in drawn
    up = {arrow for arrow in drawn if FLOORS.index(arrow[0]) < FLOORS.index(arrow[1])}
    assert up == {("exchange", "configs")}  # an imported checkpoint is written as a workdir, with its config.json


def test_plumbing_imports_no_room():
    assert not [arrow for arrow in arrows() if arrow[0] == "infra"]


def test_science_neither_reads_nor_writes_files():
    """Networks, operators, losses and samplers import no room that does."""
    science = {"sde_lib", "operators", "models", "predictor_corrector", "sampling", "losses", "optimizer"}
    allowed = {ROOT / "infra/registry.py", ROOT / "infra/errors.py"}
    files = [path for path in program_files() if room_of(path) in science]
    beyond = {t for path in files for t in imported_files(path) if room_of(t) not in science} - allowed
    assert not {path.relative_to(ROOT).as_posix() for path in beyond}


def test_the_package_holds_every_folder_of_the_program():
    """A folder that pyproject.toml does not list is missing from what `pip install .` installs."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in program_files() if room_of(path) != "examples"}
    assert sorted(listed) == sorted(".".join(("msm", *folder.parts)) for folder in folders)
