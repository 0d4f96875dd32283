"""A score model of clean images end to end: training, the four solvers in eval, predictor-corrector sampling."""

import json

import numpy as np
import pytest

from msm import run_lib
from msm.configs import brain64_mri_ve, lidc320_ve
from msm.configs.default import get_config
from msm.configs.rules.check import find_problems
from tests.helpers.checks import message_of


def test_training_evaluation_and_sampling(tiny_store, tmp_path):
    config = brain64_mri_ve.get_config("smoke")
    config.data.update(dir=str(tiny_store), image_size=32)
    config.masks.acs_lines = 4
    config.model.update(channel_mult=(1,), attention_resolutions=())
    config.training.update(num_steps=2, batch_size=2)
    config.eval.update(max_examples=2, batch_size=2, num_samples=1, solvers=("zero_filled", "projection"))
    config.training.picture_solver = "zero_filled"
    config.sampling.update(num_images=2, batch_size=2, num_levels=2)
    assert find_problems(config) == []
    run_lib.train(config, str(tmp_path))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and np.isfinite(losses).all()
    summary = run_lib.evaluate(config, str(tmp_path))
    assert summary["solvers"]["projection"]["nfe"] == 4
    run_lib.sample(config, str(tmp_path))
    drawn = np.load(tmp_path / "samples/generated/images.npz")["images"]
    assert drawn.shape == (2, 32, 32) and np.isfinite(drawn).all() and not np.allclose(drawn[0], drawn[1])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model.name": "ncsnpp"}, "needs 'score', which tells it the noise level"),
        ({"denoiser.parametrization": "score"}, "needs eps or edm"),
        (
            {"model.name": "ncsnpp", "denoiser.parametrization": "score", "schedule.name": "vp"},
            "denoiser.parametrization 'score' needs edm or ve",
        ),
        ({"model.ncsnpp.embedding": "positional"}, "scale_by_sigma is True"),
        ({"model.ncsnpp.fir": False, "model.ncsnpp.progressive": "residual"}, "resample with the filter"),
        ({"schedule.beta_min": 30.0}, "less than schedule.beta_max"),
        ({"score_sde.consistency": "fourier_slice"}, "'acquired' measures no views"),
        ({"schedule.name": "ve", "solver.start_sigma": 0.001}, "more than schedule.sigma_min"),
    ],
)
def test_settings_that_do_not_fit_are_told(changes, told):
    config = get_config()
    config.update_from_flattened_dict(changes)
    problems = find_problems(config)
    assert len(problems) == 1 and told in problems[0]


def test_pictures_of_training_have_no_views():
    config = lidc320_ve.get_config()
    config.training.picture_solver = "projection"
    problems = find_problems(config)
    assert len(problems) == 1 and "take langevin" in problems[0]


def test_flax_import_is_for_ncsnpp(tmp_path):
    from msm.tools.import_flax_checkpoint import import_checkpoint

    (tmp_path / "checkpoint_1").write_bytes(b"\x80")
    assert "no entry" in message_of(import_checkpoint, get_config(), tmp_path / "checkpoint_1", tmp_path / "w")
