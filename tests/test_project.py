"""The project's own rules: dependencies, file sizes, what may be imported, links and configs."""

import ast
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from msm.configs.rules import described
from msm.configs.rules.check import find_problems
from tests.helpers.paths import ROOT

NOT_OURS = {
    ".git",
    ".venv",
    ".venv-docs",
    "store",
    "workdir",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
}


def project_files(*suffixes: str) -> list[Path]:
    """Returns the text files that belong to the project, by suffix, sorted."""
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [name for name in subfolders if name not in NOT_OURS]
        found += [Path(folder, name) for name in names if Path(name).suffix in suffixes]
    return sorted(found)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def requirements(name: str) -> dict[str, str]:
    """Returns {normalised package name: version specifiers} of a requirements file, without the files it includes."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    parsed = [
        re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[[a-z0-9,]+\])?(.*)", line) for line in lines if line[:1] not in ("", "-")
    ]
    return {normalised(match[1]): match[2].strip() for match in parsed if match}


def normalised(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def imported_packages(files: list[Path]) -> set[str]:
    """Returns the top-level names of the third-party packages that the files import."""
    names = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    local = {p.stem for p in ROOT.glob("*.py")} | {p.name for p in ROOT.iterdir() if p.is_dir()}
    return names - local - {"msm"} - set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    "name", ["requirements.txt", "requirements-dev.txt", "requirements-tpu.txt", "requirements-docs.txt"]
)
def test_every_dependency_has_bounds_and_a_reason(name):
    for line in (ROOT / name).read_text().splitlines():
        if line[:1] in ("", "#", "-"):
            continue
        assert re.fullmatch(r"[A-Za-z0-9_.-]+(\[[a-z0-9,]+\])?>=[0-9.]+,<[0-9.]+ *# .+", line), f"{name}: {line}"


def test_constraints_hold_an_exact_version_of_every_dependency():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in ("", "#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.+]*", line) for line in lines)
    frozen = {normalised(line.split("==")[0]) for line in lines}
    wanted = set(requirements("requirements.txt")) | set(requirements("requirements-dev.txt"))
    assert wanted <= frozen
    assert not {"tensorflow", "torch"} & frozen


def test_requirements_name_exactly_what_is_imported():
    tests = [p for p in project_files(".py") if name_of(p).startswith("tests/")]
    program = [p for p in project_files(".py") if p not in tests]
    distributions = importlib.metadata.packages_distributions()

    def packages(files):
        return {normalised(distributions.get(name, [name])[0]) for name in imported_packages(files)}

    required = set(requirements("requirements.txt"))
    undeclared = packages(program) - required - {"jaxlib"}
    # TFDS imports the first two by itself, jax.export the third; h5py is there for users' own k-space files.
    unused = required - packages(program) - {"array-record", "importlib-resources", "flatbuffers", "h5py"}
    assert not undeclared, f"imported but not in requirements.txt: {undeclared}"
    assert not unused, f"in requirements.txt but not imported: {unused}"
    extra = packages(tests) - required - set(requirements("requirements-dev.txt")) - {"jaxlib", "torch"}
    assert not extra, f"imported by tests but in no requirements file: {extra}"


def test_program_imports_neither_tensorflow_nor_torch():
    code = "import sys; from msm import main, run_lib; print(sorted({'tensorflow', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("path", project_files(".py"), ids=name_of)
def test_file_is_short_and_says_what_it_is_for(path):
    text = path.read_text()
    limit = 80 if name_of(path) == "main.py" else 400
    assert len(text.splitlines()) <= limit, f"{name_of(path)} has more than {limit} lines"
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(text)), f"{name_of(path)} has no docstring"


def test_no_file_mentions_a_private_path_or_an_unfinished_part():
    # The patterns are put together here so that this file does not hold them.
    forbidden = [
        r"/" + r"work/",
        r"/" + r"tmp/bash",
        r"/" + r"root/",
        r"\b" + "TO" + "DO\b",
        r"\bFIX" + r"ME\b",
        r"\bX" + r"XX\b",
    ]
    pattern = re.compile("|".join(forbidden))
    files = project_files(".py", ".md", ".toml", ".txt", ".yaml", ".json", ".pyi") + [
        ROOT / "Makefile",
        ROOT / ".ci/run",
    ]
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def heading_anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", project_files(".md"), ids=name_of)
def test_internal_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{name_of(path)} links to {target}, which does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in map(heading_anchor, headings), f"{name_of(path)} links to {target}: no such heading"


def pages() -> list[Path]:
    """Returns the README and every page of the documentation."""
    return [ROOT / "README.md", ROOT / "examples/README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", pages(), ids=name_of)
def test_paths_named_in_a_page_exist(path):
    folders = "|".join(sorted(p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")))
    named = re.findall(rf"(?:^|[\s`(])((?:{folders})/[A-Za-z0-9_/.-]*\.(?:py|md|txt|npz|ipynb))\b", path.read_text())
    made = ("store/", "workdir/", "results/", "build/")  # what a reader's commands make
    examples = {"my_solver.py", "my_model.py", "my_data.py"}
    wanted = {name for name in named if not name.startswith(made) and Path(name).name not in examples}
    missing = sorted(name for name in wanted if not (ROOT / name).exists())
    assert not missing


def test_readme_is_one_screen_of_short_sentences():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 110
    prose = re.sub(r"```.*?```|^ {4}.*$|^\|.*$|^!\[.*$|<!--.*?-->", "", text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", prose)
    for sentence in re.split(r"(?<=[.!?:])\s|\n\n|\n#+ ", prose):
        assert len(sentence.split()) <= 25, sentence


@pytest.mark.parametrize("path", pages()[2:], ids=name_of)
def test_page_answers_one_question(path):
    """Its first line names it, the next says which question it answers (docs/method.md: what it maps)."""
    title, blank, question = path.read_text().splitlines()[:3]
    assert title.startswith("# ") and not blank
    assert question.rstrip().endswith("?") or "how-to/pods" in path.as_posix(), question


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    listed = set(re.findall(r"[\w/-]+\.md", navigation))
    assert listed == {path.relative_to(ROOT / "docs").as_posix() for path in pages()[2:]}


def test_settings_page_is_what_the_declarations_say():
    page = (ROOT / "docs/reference/settings.md").read_text()
    assert page == described.page(), "run tools/list_settings.py"


def test_functions_named_in_the_method_page_exist():
    """docs/method.md maps equations to functions: every `file.py`: `name` pair must be defined there."""
    pairs = re.findall(r"`([a-z_/0-9]+\.py)`: ((?:`[A-Za-z_.]+`(?:, )?)+)", (ROOT / "docs/method.md").read_text())
    assert len(pairs) > 10
    for file, names in pairs:
        text = (ROOT / file).read_text()
        for name in re.findall(r"`([A-Za-z_.]+)`", names):
            pattern = rf"^\s*(def|class) {name.split('.')[-1]}\b|^{name} ="
            assert re.search(pattern, text, re.MULTILINE), f"docs/method.md names {file}: {name}, which is not there"


def test_changelog_has_an_unreleased_section():
    assert re.search(r"^## \[?Unreleased\]?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_makefile_lists_every_target():
    command = ["make", "--no-print-directory", "help"]  # this test itself may run inside make
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert {line.split()[1] for line in done.stdout.splitlines()} == {
        "help", "setup", "demo", "demo-images", "test", "test-slow", "lint", "docs", "bench", "clean",
    }  # fmt: skip


def test_makefile_refuses_an_old_python(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\nif [ "$1" = -V ]; then echo Python 3.10.1; else exit 1; fi\n')
    old.chmod(0o755)
    command = ["make", "setup", f"PYTHON={old}", f"VENV={tmp_path}/venv"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr
    assert not (tmp_path / "venv").exists()


def leaf_configs() -> list[Path]:
    """Returns the configs of experiments, all of which have variants; default.py and variants.py are none."""
    return [p for p in sorted((ROOT / "configs").glob("*.py")) if "variants.apply" in p.read_text()]


@pytest.mark.parametrize("path", leaf_configs(), ids=name_of)
@pytest.mark.parametrize("variant", ["", "smoke"])
def test_config_loads_and_passes_the_check(path, variant):
    module = importlib.import_module(f"msm.configs.{path.stem}")
    config = module.get_config(*([variant] if variant else []))
    assert find_problems(config) == []
