"""From raw files to images as users start it: prepare, train and evaluate without references, reconstruct one file."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from msm.builders.store import config_flags
from tests.e2e.test_main import ENVIRONMENT, ROOT
from tests.helpers.raw_files import raw_head, write_bart, write_fastmri

pytestmark = pytest.mark.slow

SIZE = 32


def start(*command: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with raw files of three people, their store, a workdir that was trained and evaluated, and results."""
    folder = tmp_path_factory.mktemp("raw_scans")
    (folder / "raw").mkdir()
    head = raw_head(SIZE, 2, coils=4, acs=8)
    write_fastmri(folder / "raw" / "a.h5", head, "p1")
    write_fastmri(folder / "raw" / "b.h5", head, "p2")
    write_bart(folder / "raw" / "c", head)
    start("tools/prepare_mri.py", f"--in={folder / 'raw'}", f"--out={folder / 'store'}", f"--size={SIZE}", "--coils=3",
          "--test=c.cfl")  # fmt: skip
    manifest = json.loads((folder / "store" / "manifest.json").read_text())
    common = [
        "main.py", "--config=configs/brain64_msm.py:smoke", f"--workdir={folder / 'run'}",
        f"--cache={folder / 'cache'}", f"--config.data.dir={folder / 'store'}", "--config.model.channel_mult=(1,)",
        "--config.eval.solvers=('zero_filled','msm')", *config_flags(manifest["settings"]).split(),
    ]  # fmt: skip
    start(*common, "--mode=train")
    start(*common, "--mode=eval")
    start(
        "tools/reconstruct.py", f"--raw={folder / 'raw' / 'c.cfl'}", f"--checkpoint={folder / 'run'}", "--coils=3",
        f"--out={folder / 'out'}", "--solvers=zero_filled,msm", "--samples=2", f"--cache={folder / 'cache'}",
    )  # fmt: skip
    return folder


def test_scans_without_references_are_trained_on_and_reconstructed(run):
    summary = json.loads((run / "run" / "eval" / "summary.json").read_text())
    assert set(summary["solvers"]["msm"]) == {"seconds", "nfe", "num_samples"}
    assert "no reference" in summary["absent"]["image quality"] and not summary["volumes"] and not summary["gains"]
    with np.load(run / "run" / "eval" / "rounds" / "round_0000.npz") as arrays:
        real = arrays["example_id"] >= 0
        assert real.sum() == 2 and "reference" not in arrays.files
        assert set(arrays["volume"]) == {"c.cfl"} and np.isfinite(arrays["msm/mean"]).all()
    page = (run / "run" / "eval" / "report.html").read_text()
    assert "no reference images" in page and "PSNR per slice" not in page


def test_one_file_is_reconstructed_as_in_the_store(run):
    """The zero-filled image of the tool is that of the evaluation times the scale: both saw the same acquisition."""
    manifest = json.loads((run / "store" / "manifest.json").read_text())
    rounds = [run / folder / "eval" / "rounds" / "round_0000.npz" for folder in ("run", "out")]
    ours, theirs = (np.load(path)["zero_filled/mean"][:2] for path in rounds)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    with np.load(run / "out" / "images" / "c.npz") as images, np.load(rounds[1]) as arrays:
        np.testing.assert_allclose(
            images["complex"], arrays["msm/mean"][:2] * manifest["volumes"]["c.cfl"]["scale"], rtol=1e-5
        )
        assert images["std"].shape == (2, SIZE, SIZE)
    assert (run / "out" / "images" / "c.png").exists() and (run / "out" / "eval" / "report.html").exists()
