"""--mode sample: rounds are drawn once, images depend on their number alone, and what is told about them is true."""

import copy
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.io import imread

from msm import datasets, run_lib
from msm.configs.rules.check import find_problems
from msm.evaluation import memorisation
from msm.evaluation.distances import frechet_distance
from msm.evaluation.features import small_features
from msm.experiment import build
from msm.infra import rounds
from msm.infra.checkpoints import export_params
from msm.models.init import init_params
from msm.modes import opening
from msm.modes import sample as generation
from msm.operators.measurement import Measurement
from msm.reports import samples_page as sample_report
from tests.helpers.checks import hashes, message_of
from tests.helpers.small_runs import Killed, small_config
from tests.reports.test_report import Page

TOTAL = 6


@pytest.fixture(scope="module")
def checkpoint(tiny_store, tmp_path_factory):
    """Parameters whose last layer is not zero, as a new network's is: otherwise every image would be the same blur."""
    folder = tmp_path_factory.mktemp("checkpoint")
    experiment = build(small_config(tiny_store))
    rng = np.random.default_rng(0)
    params = init_params(experiment.model, 0, experiment.image_shape)
    params = jax.tree.map(lambda a: (a + 0.02 * rng.normal(size=a.shape)).astype(np.float32), params)
    export_params(folder, params, 7, {})
    return folder


@pytest.fixture
def config(tiny_store, checkpoint):
    return make_config(tiny_store, checkpoint)


def make_config(store, checkpoint):
    config = small_config(store)
    config.eval.checkpoint = str(checkpoint)
    config.sampling.num_images, config.sampling.batch_size = TOTAL, 4
    return config


@pytest.fixture(scope="module")
def straight(tiny_store, checkpoint, tmp_path_factory):
    """(folder of the results, summary) of a run that was never interrupted."""
    workdir = tmp_path_factory.mktemp("straight")
    summary = run_lib.sample(make_config(tiny_store, checkpoint), str(workdir), "python main.py --mode=sample")
    return workdir / "samples" / "generated", summary


def images_of(folder):
    with np.load(folder / "images.npz", allow_pickle=False) as stored:
        return stored["images"]


def count_drawn(monkeypatch, limit=100):
    """Returns a list that grows with every round that is written; the one after `limit` raises Killed."""
    write, written = rounds.write, []

    def counted(path, stamp, arrays):
        if len(written) == limit:
            raise Killed
        written.append(arrays["example_id"].tolist())
        write(path, stamp, arrays)

    monkeypatch.setattr(rounds, "write", counted)
    return written


def test_everything_is_written(straight):
    folder, summary = straight
    images = images_of(folder)
    assert images.shape == (TOTAL, 32, 32) and images.dtype == np.complex64 and np.isfinite(images).all()
    assert len({image.tobytes() for image in images}) == TOTAL
    parts = [np.load(path) for path in sorted(folder.glob("rounds/*.npz"))]
    np.testing.assert_array_equal(np.concatenate([part["images"] for part in parts]), images)
    assert [part["example_id"].tolist() for part in parts] == [[0, 1, 2, 3], [4, 5]]
    assert summary["run"]["images"] == TOTAL and summary["run"]["training step"] == 7
    for name in ("grid.png", "nearest.png"):
        assert imread(folder / name).std() > 0
    assert json.loads((folder / "summary.json").read_text())["distances"]["drawn"] == TOTAL


def test_stated_distance_is_that_of_the_written_images(config, straight):
    folder, summary = straight
    references = datasets.open_references(config, "test")
    pair = small_features(images_of(folder)), small_features(references.batch(range(len(references))))
    assert summary["distances"]["frechet"] == pytest.approx(frechet_distance(*pair), rel=1e-9)
    assert summary["distances"]["references"] == len(references)
    assert any("covariance is singular" in told for told in summary["distances"]["warnings"])


def test_report_is_complete_and_needs_nothing_from_elsewhere(straight):
    folder, summary = straight
    content = (folder / "report.html").read_text()
    page = Page(content)
    assert {"script", "link", "iframe"}.isdisjoint(page.tags) and "http" not in content
    assert sorted(page.sources) == ["grid.png", "nearest.png"]
    told = " ".join(page.text)
    assert f"{summary['distances']['frechet']:.4g}" in told and "--mode=sample" in told
    assert f"{summary['memorisation']['drawn']['distance']['median']:.4g}" in told
    for name in summary["definitions"]:
        assert name in page.text
    assert f"{TOTAL} images, Fréchet distance" in sample_report.one_line(summary)
    assert "grey window up to its own maximum" in content and "not for diagnosis" in content
    equal = summary["distances"]["equal_sizes"]
    assert f"{equal['images']} drawn to {equal['images']} reference" in told
    assert f"drawn {equal['drawn']['frechet']:.4g}, real {equal['real']['frechet']:.4g} ±" in sample_report.one_line(
        summary
    )


def test_images_without_held_out_ones_are_not_called_clean(straight, tmp_path):
    summary = copy.deepcopy(straight[1])
    row = {"kind": "drawn", "image_id": 0, "nearest_id": 1, "distance": 0.1, "flagged": None}
    row |= {"over_second": 1.0, "over_held_out": float("nan")}
    summary["memorisation"] = memorisation.summarize([row])
    line = sample_report.one_line(summary)
    assert "flagged" not in line and "1 cannot be judged to be copies or not without held-out images" in line
    pictures = images_of(straight[0])[:2].reshape(2, 1, 32, 32)
    content = sample_report.write_report(tmp_path, summary, [row], pictures).read_text()
    assert (
        "1 drawn images cannot be judged to be copies or not without held-out" in content
        and "<td>not judged</td>" in content
    )


def test_a_killed_run_goes_on_after_its_last_round(config, straight, tmp_path, monkeypatch):
    folder, summary = straight
    with monkeypatch.context() as patch:
        count_drawn(patch, limit=1)
        with pytest.raises(Killed):
            run_lib.sample(config, str(tmp_path), "python main.py --mode=sample")
    written = count_drawn(monkeypatch)
    assert run_lib.sample(config, str(tmp_path), "python main.py --mode=sample") == summary
    assert written == [[4, 5]]
    assert hashes(tmp_path / "samples" / "generated") == hashes(folder)


def test_images_do_not_depend_on_the_batch_size(config, straight, tmp_path):
    config.sampling.batch_size, config.sampling.check_images = 3, 0
    summary = run_lib.sample(config, str(tmp_path))
    found, expected = images_of(tmp_path / "samples" / "generated"), images_of(straight[0])
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert summary["memorisation"] == {}
    assert "Copies of training data" not in (tmp_path / "samples" / "generated" / "report.html").read_text()


def test_more_images_keep_the_finished_rounds_and_fewer_drop_them(config, straight, tmp_path, monkeypatch):
    config.sampling.num_images, config.sampling.check_images = 8, 0
    written = count_drawn(monkeypatch)
    run_lib.sample(config, str(tmp_path))
    config.sampling.num_images, config.sampling.reference_split = 12, "none"
    assert run_lib.sample(config, str(tmp_path))["distances"] == {}
    assert written == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    folder = tmp_path / "samples" / "generated"
    np.testing.assert_array_equal(images_of(folder)[:TOTAL], images_of(straight[0]))
    config.sampling.num_images = 4
    run_lib.sample(config, str(tmp_path))
    assert len(written) == 3 and len(list(folder.glob("rounds/*"))) == 1 and len(images_of(folder)) == 4


def test_a_finished_run_draws_nothing(config, straight, monkeypatch):
    count_drawn(monkeypatch, limit=0)
    before = hashes(straight[0])
    again = run_lib.sample(config, str(straight[0].parent.parent), "python main.py --mode=sample")
    assert again == straight[1] and hashes(straight[0]) == before


@pytest.mark.parametrize("change", ["seed", "sampling.num_levels", "sampling.eta", "masks.acceleration"])
def test_rounds_of_other_settings_are_drawn_again(config, straight, change, monkeypatch):
    def die(*_):
        raise Killed

    monkeypatch.setattr(generation, "get_sampling_fn", lambda *_: die)
    if change == "masks.acceleration":  # of the store, whose manifest says so too
        info = datasets.dataset_info(config)
        info["settings"]["acceleration"] = 5.0
        monkeypatch.setattr(datasets, "dataset_info", lambda *_: info)
    config.update_from_flattened_dict({change: {"sampling.eta": 0.5, "masks.acceleration": 5.0}.get(change, 2)})
    with pytest.raises(Killed):
        run_lib.sample(config, str(straight[0].parent.parent))


def test_a_copied_training_image_is_flagged(config, tmp_path, monkeypatch):
    """Validation slices are trained on here, so the network 'draws' one of them among others."""
    references = datasets.open_references(config, "validation")
    training = datasets.open_acquisitions(config, "validation")
    copy = references.batch([1])[0]

    def get_copying_fn(*_):
        noise = np.random.default_rng(0).normal(size=(TOTAL, 32, 32)).astype(np.complex64)
        drawn = np.concatenate([noise[:2], copy[None] * np.complex64(1j), noise[3:]])
        return lambda key, params, ids, maps, shape: jnp.asarray(drawn)[ids % TOTAL]

    monkeypatch.setattr(generation, "get_sampling_fn", get_copying_fn)
    monkeypatch.setattr(run_lib.datasets, "open_acquisitions", lambda *_: training)
    summary = run_lib.sample(config, str(tmp_path))
    rows = (tmp_path / "samples" / "generated" / "memorisation.csv").read_text().splitlines()
    assert rows[3].split(",")[:3] == ["drawn", "2", str(training.ids[1])] and rows[3].endswith("True")
    assert summary["memorisation"]["drawn"]["flagged"] == 1 and summary["memorisation"]["held-out"]["flagged"] == 0


class Photos:
    """Stands for a store's colour images, or their acquisitions with half of the pixels missing."""

    def __init__(self, count, measured, seed):
        rng = np.random.default_rng(seed)
        self.images = rng.uniform(-1, 1, (count, 16, 16, 3)).astype(np.float32)
        self.masks, self.ids, self.measured = rng.random((count, 16, 16, 1)) < 0.5, np.arange(count) + 50, measured

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"y": self.images[index]}

    def batch(self, places):
        places = np.asarray(places)
        if not self.measured:
            return self.images[places]
        mask, noise = self.masks[places], np.zeros(len(places), np.float32)
        y = np.where(mask, self.images[places], 0)
        return Measurement(y, mask, None, noise, self.ids[places].astype(np.int32))


def test_colour_images_are_drawn_and_compared(config, tmp_path, monkeypatch):
    config.data.num_coils, config.data.image_size, config.data.augment = 0, 16, ("mirror",)
    config.transform.name, config.masks.name = "identity", "random_boxes"
    config.masks.grid, config.masks.drop = 4, 6
    config.model.patch_size = 4
    config.eval.checkpoint = ""
    info = {"counts": {"train": 5}, "references": {"ids": {"test": [], "validation": []}}}
    monkeypatch.setattr(datasets, "dataset_info", lambda *_: info)
    monkeypatch.setattr(datasets, "open_acquisitions", lambda *_: Photos(5, True, seed=0))
    monkeypatch.setattr(datasets, "open_references", lambda _, split: Photos(4, False, seed=len(split)))
    params = init_params(build(config).model, 0, (16, 16, 3))
    monkeypatch.setattr(opening, "load_params", lambda *_: (params, {"checkpoint": "this workdir", "training step": 7}))
    monkeypatch.setattr(opening.checkpoints, "kept_steps", lambda _: [7])
    summary = run_lib.sample(config, str(tmp_path))
    assert summary["distances"]["features"] == 89 and summary["run"]["coil maps"] == "none"
    assert summary["distances"]["equal_sizes"]["between_splits"]["frechet"] > 0
    assert images_of(tmp_path / "samples" / "generated").shape == (TOTAL, 16, 16, 3)
    assert imread(tmp_path / "samples" / "generated" / "nearest.png").ndim == 3
    page = (tmp_path / "samples" / "generated" / "report.html").read_text()
    assert "In their own colours" in page and "grey window" not in page and "diagnosis" not in page


def test_precomputed_features_are_compared_if_they_are_of_these_images(config, straight, tmp_path):
    rng = np.random.default_rng(0)
    drawn, reference = rng.normal(size=(TOTAL, 3)), rng.normal(size=(20, 3)) + 1
    shutil.copytree(straight[0], tmp_path / "run" / "samples" / "generated")
    with np.load(straight[0] / "images.npz", allow_pickle=False) as stored:
        digest = stored["digest"]
    assert str(digest) == hashlib.sha256(images_of(straight[0]).tobytes()).hexdigest()
    np.savez(tmp_path / "drawn.npz", features=drawn, digest=digest)
    np.savez(tmp_path / "reference.npz", features=reference)
    config.sampling.features = str(tmp_path / "drawn.npz")
    assert "need sampling.reference_features" in find_problems(config)[0]
    config.sampling.reference_features = str(tmp_path / "reference.npz")
    assert find_problems(config) == []
    config.sampling.check_images = 0
    summary = run_lib.sample(config, str(tmp_path / "run"))
    assert summary["distances"]["frechet"] == pytest.approx(frechet_distance(drawn, reference), rel=1e-9)
    assert "features" not in summary["definitions"]
    np.savez(tmp_path / "drawn.npz", features=drawn, digest="of an earlier run")
    assert "is of other images" in message_of(run_lib.sample, config, str(tmp_path / "run"))


def test_what_does_not_fit_is_told_before_anything_is_written(config, tmp_path):
    workdir = tmp_path / "run"
    np.savez(tmp_path / "features.npz", features=np.zeros((5, 3)))
    np.savez(tmp_path / "untold.npz", features=np.zeros((TOTAL, 3)))
    config.sampling.reference_features = str(tmp_path / "features.npz")
    assert "sampling.features gives 80 features" in message_of(run_lib.sample, config, str(workdir))
    config.sampling.features = str(tmp_path / "features.npz")
    assert "holds 5 images, sampling.num_images is 6" in message_of(run_lib.sample, config, str(workdir))
    config.sampling.features = str(tmp_path / "untold.npz")
    assert "store the 'digest' of their images.npz" in message_of(run_lib.sample, config, str(workdir))
    config.sampling.features = "smal"
    assert "'smal' cannot be read" in message_of(run_lib.sample, config, str(workdir))
    assert not workdir.exists()


def test_joined_parts_are_one_array(tmp_path):
    whole = np.arange(24, dtype=np.complex64).reshape(6, 2, 2)
    parts = iter([whole[:4], whole[4:]])
    digest = rounds.join(tmp_path / "a.npz", "images", parts, whole.shape, whole.dtype, step=np.array(3))
    assert digest == hashlib.sha256(whole.tobytes()).hexdigest()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["images"], whole)
        assert stored["step"] == 3 and stored["images"].dtype == np.complex64
