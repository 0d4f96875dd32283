"""CT from a store to a report: a prior of slices is trained, evaluated on sparse views and on scans with metal."""

import json

import pytest

from msm import run_lib
from msm.builders.ct.store import Lungs
from msm.builders.pictures.store import Images, Settings
from msm.builders.store import prepare_store
from msm.configs import lung64_ct

pytestmark = pytest.mark.slow


def config_of(store, variant: str):
    """The smoke variant at 32 x 32 with a one-level network, two steps and two slices."""
    config = lung64_ct.get_config(f"smoke+{variant}")
    config.data.update(dir=str(store), image_size=32)
    config.training.num_steps = 2
    config.model.update(channel_mult=(1,), attention_resolutions=())
    config.eval.update(max_examples=2, batch_size=2)
    config.task.views = 5
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store of three slices per split and a workdir trained on it."""
    store, folder = (tmp_path_factory.mktemp("ct") / name for name in ("store", "run"))
    prepare_store(store, Images(Settings(image_size=32, drop=0), Lungs(3)))
    run_lib.train(config_of(store, "sparse_ct"), str(folder))
    return store, folder


def test_sparse_views_are_reconstructed_and_reported(trained):
    store, folder = trained
    config = config_of(store, "sparse_ct")
    config.eval.update(solvers=("fbp", "msm"), metrics=("standard", "clipped", "disc"))
    summary = run_lib.evaluate(config, str(folder))
    assert summary["solvers"]["fbp"]["psnr"]["n"] == 2 and summary["volumes"]["slices"] == {"lung1": 2}
    assert {"psnr_disc", "ssim_clipped"} <= set(summary["solvers"]["msm"])
    assert "FBP" in (folder / "sparse_ct" / "report.html").read_text()
    assert (folder / "samples" / "step_0000002.png").stat().st_size > 0


def test_metal_is_reported_without_its_pixels(trained):
    store, folder = trained
    config = config_of(store, "mar")
    config.eval.update(solvers=("fbp", "li"), metrics=("standard", "mar"))
    summary = run_lib.evaluate(config, str(folder))
    psnr = {name: summary["solvers"][name]["psnr"]["mean"] for name in ("fbp", "li")}
    assert psnr["li"] > psnr["fbp"] + 3 and "rmse_mar" in summary["solvers"]["li"]
    facts = json.loads((folder / "mar" / "summary.json").read_text())["run"]
    assert facts["task's settings"]["metal"] == "titanium"
