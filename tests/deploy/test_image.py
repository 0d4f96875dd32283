"""The Dockerfile: three stages, pinned, without root, of files that there are and that .dockerignore lets through."""

import fnmatch
import re

import pytest

from tests.helpers.paths import ROOT

LINES = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def stages() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in LINES:
        if begun := re.match(r"FROM (\S+) AS (\S+)", line):
            found[begun[2]] = [*found.get(begun[1], [])]
            current = found[begun[2]]
        elif found and line and not line.startswith("#"):
            current.append(line)
    return found


@pytest.mark.parametrize("name", ["cpu", "cuda", "tpu"])
def test_a_stage_is_pinned_and_runs_the_demo_without_root(name):
    lines = stages()[name]
    installs = [line for line in lines if re.search(r"pip install .*-r", line)]
    assert installs and all("-c constraints.txt" in line for line in installs)
    assert any(f"requirements-{name}.txt" in line for line in installs) == (name != "cpu")
    assert [line for line in lines if line.startswith("USER")] == ["USER msm"]
    assert lines.index("USER msm") > max(i for i, line in enumerate(lines) if line.startswith(("RUN", "COPY")))
    assert lines[-1] == 'CMD ["bash", "deploy/demo.sh"]'


def ignored(path: str) -> bool:
    parts = path.split("/")
    heads = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    patterns = [pattern.removeprefix("**/") for pattern in IGNORED]
    return any(fnmatch.fnmatch(head, p) or fnmatch.fnmatch(head.split("/")[-1], p) for head in heads for p in patterns)


def test_what_the_image_needs_is_let_through_and_what_is_large_or_private_is_not():
    sources = [word for line in LINES if line.startswith("COPY") for word in line.split()[1:-1]]
    needed = [*(s for s in sources if s != "."), "deploy/demo.sh", "main.py", "tools/prepare_demo.py", "README.md"]
    needed += ["pyproject.toml", "configs/default.py", "data/brains_128.npz", "builders/demo/heads.py"]
    for path in needed:
        assert (ROOT / path).is_file() and not ignored(path), path
    for path in (".git/config", ".venv/bin/python", "store/brain64/manifest.json", "workdir/demo/train.log"):
        assert ignored(path), path


def test_the_pins_are_those_of_every_stage():
    """Versions of the accelerators' own libraries are frozen too."""
    pins = (ROOT / "constraints.txt").read_text()
    for package in ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cudnn-cu12"):
        assert re.search(rf"^{package}==\S+$", pins, re.MULTILINE), package
