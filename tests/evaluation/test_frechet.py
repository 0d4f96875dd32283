"""evaluation/distances.py: Gaussians of known distance, singular covariances, and the bias of few samples."""

import math

import numpy as np
import pytest
import scipy.linalg

from msm.evaluation import distances as frechet
from tests.helpers.checks import message_of


def random_covariance(rng, size, rank=None):
    root = rng.normal(size=(size, size if rank is None else rank))
    return root @ root.T


def test_diagonal_gaussians_have_the_distance_of_their_standard_deviations():
    """|m1 - m2|^2 + sum (s1 - s2)^2."""
    one, other = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5])
    distance = frechet.gaussian_distance(np.zeros(3), np.diag(one**2), np.array([0.0, 3.0, 4.0]), np.diag(other**2))
    assert distance == pytest.approx(25 + np.sum((one - other) ** 2), abs=1e-12)


def test_scaled_covariance_in_one_dimension():
    assert frechet.gaussian_distance([1.0], [[4.0]], [1.0], [[9.0]]) == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("rank", [None, 3])
def test_rotated_gaussians_equal_the_matrix_root_of_scipy(rank):
    rng = np.random.default_rng(0)
    one, other = random_covariance(rng, 6), random_covariance(rng, 6, rank)
    root = np.trace(scipy.linalg.sqrtm(scipy.linalg.sqrtm(one) @ other @ scipy.linalg.sqrtm(one)).real)
    expected = np.trace(one) + np.trace(other) - 2 * root
    tolerance = 1e-10 if rank is None else 1e-6  # the root of a singular matrix loses half of scipy's digits
    assert frechet.gaussian_distance(np.zeros(6), one, np.zeros(6), other) == pytest.approx(expected, rel=tolerance)


def test_singular_covariances_in_other_directions_do_not_meet():
    """Rank one along orthogonal directions: nothing is shared, so both traces count in full."""
    a, b = np.array([3.0, 4.0, 0.0]), np.array([0.0, 0.0, 2.0])
    distance = frechet.gaussian_distance(np.zeros(3), np.outer(a, a), np.zeros(3), np.outer(b, b))
    assert distance == pytest.approx(25 + 4, abs=1e-12)
    # along directions with the cosine c, the roots' product is |a||b|c
    c = np.array([1.0, 0.0, 0.0])
    distance = frechet.gaussian_distance(np.zeros(3), np.outer(a, a), np.zeros(3), np.outer(c, c))
    assert distance == pytest.approx(25 + 1 - 2 * 5 * 0.6, abs=1e-12)


@pytest.mark.parametrize("rank", [1, 4, 40])
def test_distance_to_itself_is_zero_to_rounding(rank):
    rng = np.random.default_rng(1)
    cov, mean = random_covariance(rng, 40, rank), rng.normal(size=40)
    assert frechet.gaussian_distance(mean, cov, mean, cov) < 1e-12 * np.trace(cov)
    zero = np.zeros((40, 40))
    assert frechet.gaussian_distance(mean, cov, mean, zero) == pytest.approx(np.trace(cov), rel=1e-12)


def test_distance_is_symmetric():
    rng = np.random.default_rng(2)
    one = (rng.normal(size=5), random_covariance(rng, 5, 2))
    other = (rng.normal(size=5), random_covariance(rng, 5))
    forth, back = frechet.gaussian_distance(*one, *other), frechet.gaussian_distance(*other, *one)
    assert forth == pytest.approx(back, rel=1e-12)


def test_order_of_the_images_does_not_matter_in_the_last_bit():
    rng = np.random.default_rng(3)
    drawn, reference = rng.normal(size=(60, 3)), rng.normal(size=(50, 3)) + 0.3
    shuffled = frechet.compare(rng.permutation(drawn), rng.permutation(reference))
    assert shuffled == frechet.compare(drawn, reference)


def test_kernel_distance_is_the_mean_over_pairs():
    rng = np.random.default_rng(4)
    one, other = rng.normal(size=(7, 4)), rng.normal(size=(5, 4))
    kernel = lambda a, b: (np.dot(a, b) / 4 + 1) ** 3  # noqa: E731
    within = [
        np.mean([kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (one, other)
    ]
    cross = np.mean([kernel(a, b) for a in one for b in other])
    assert frechet.kernel_distance(one, other) == pytest.approx(sum(within) - 2 * cross, rel=1e-12)


def test_kernel_distance_in_blocks_is_that_at_once(monkeypatch):
    rng = np.random.default_rng(5)
    one, other = rng.normal(size=(37, 4)), rng.normal(size=(20, 4))
    whole = frechet.kernel_distance(one, other)
    monkeypatch.setattr(frechet, "_BLOCK", 8)
    assert frechet.kernel_distance(one, other) == pytest.approx(whole, rel=1e-12)


def gaussian_sets(rng, count, dimension=8, shift=0.5):
    """Two samples whose true Fréchet distance is `shift`^2."""
    one, other = rng.normal(size=(2, count, dimension))
    other[:, 0] += shift
    return one, other


def test_kernel_distance_of_equal_distributions_is_zero_on_average():
    rng = np.random.default_rng(6)
    values = [frechet.kernel_distance(*gaussian_sets(rng, 12, 4, shift=0)) for _ in range(400)]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error and error < 0.1


def test_extrapolation_removes_most_of_the_bias():
    """200 samples in 8 dimensions: the plain distance is biased by about 3 standard errors, the extrapolated is not."""
    rng = np.random.default_rng(7)
    pairs = [gaussian_sets(rng, 200) for _ in range(60)]
    plain = np.array([frechet.frechet_distance(*pair) for pair in pairs]) - 0.25
    better = np.array([frechet.extrapolated_distance(*pair) for pair in pairs]) - 0.25
    assert plain.mean() > 0.08
    assert abs(better.mean()) < 0.25 * plain.mean()


def test_too_few_images_are_told_and_not_extrapolated():
    rng = np.random.default_rng(8)
    found = frechet.compare(*gaussian_sets(rng, 8))
    assert math.isnan(found["frechet_extrapolated"])
    assert "8 drawn and 8 reference images for 8 features" in found["warnings"][0]
    assert "it needs 32 images of each kind" in found["warnings"][1]
    assert np.isfinite([found["frechet"], found["kernel"], *found["equal_sizes"]["real"].values()]).all()
    enough = frechet.compare(*gaussian_sets(rng, 32))
    assert enough["warnings"] == [] and math.isfinite(enough["frechet_extrapolated"])


def mean_and_error(values):
    return np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values))


@pytest.mark.parametrize("drawn, references, size", [(40, 40, 20), (60, 30, 15), (12, 60, 12)])
def test_equal_distributions_agree_with_real_images_at_equal_sizes_alone(drawn, references, size):
    """Halves of the reference set are no measure of all drawn images: the bias of those is another."""
    rng, equal, unequal = np.random.default_rng(9), [], []
    for _ in range(60):
        found = frechet.compare(rng.normal(size=(drawn, 6)), rng.normal(size=(references, 6)))
        at_size = found["equal_sizes"]
        assert at_size["images"] == size
        equal.append(at_size["drawn"]["frechet"] - at_size["real"]["frechet"])
        unequal.append(found["frechet"] - at_size["real"]["frechet"])
    mean, error = mean_and_error(equal)
    assert abs(mean) < 3 * error
    mean, error = mean_and_error(unequal)
    assert mean < -10 * error


def test_distances_at_one_size_are_biased_as_those_of_that_many_fresh_images():
    rng = np.random.default_rng(10)
    fresh, fresh_error = mean_and_error([frechet.frechet_distance(*rng.normal(size=(2, 20, 6))) for _ in range(300)])
    real = [frechet.of_halves(rng.normal(size=(40, 6)), 20)["frechet"] for _ in range(60)]
    mean, error = mean_and_error(real)
    assert abs(mean - fresh) < 3 * math.hypot(error, fresh_error)


def test_spread_of_real_kernel_distances_is_that_of_fresh_images():
    rng = np.random.default_rng(11)
    fresh = np.std([frechet.kernel_distance(*rng.normal(size=(2, 20, 6))) for _ in range(500)])
    spreads = [frechet.of_halves(rng.normal(size=(40, 6)), 20)["kernel_std"] for _ in range(100)]
    assert np.sqrt(np.mean(np.square(spreads))) == pytest.approx(fresh, rel=0.15)


def test_a_shift_is_above_the_spread_and_equal_images_are_not():
    rng = np.random.default_rng(12)
    reference = rng.normal(size=(200, 4))
    near, far = (frechet.compare(rng.normal(size=(100, 4)) + shift, reference) for shift in (0, 0.5))
    for name in ("frechet", "kernel"):
        usual = near["equal_sizes"]["real"].get(name, 0)
        near_gain, far_gain = (
            (found["equal_sizes"]["drawn"][name] - usual) / found["equal_sizes"]["real"][f"{name}_std"]
            for found in (near, far)
        )
        assert abs(near_gain) < 3 and far_gain > 6


def test_further_real_images_are_compared_at_the_same_size():
    rng = np.random.default_rng(13)
    drawn, reference, others = rng.normal(size=(50, 4)), rng.normal(size=(60, 4)), rng.normal(size=(80, 4)) + 1
    equal = frechet.compare(drawn, reference, others)["equal_sizes"]
    assert equal["between_splits"]["images"] == equal["images"] == 30
    assert equal["between_splits"]["frechet"] > 2 * equal["real"]["frechet"]
    assert frechet.compare(drawn, reference, others[:7])["equal_sizes"]["between_splits"]["images"] == 7
    assert "between_splits" not in frechet.compare(drawn, reference)["equal_sizes"]


def test_too_few_images_have_no_distance_at_equal_sizes():
    equal = frechet.compare(np.eye(3), np.eye(3))["equal_sizes"]
    assert equal["images"] == 1
    assert all(math.isnan(value) for which in ("drawn", "real") for value in equal[which].values())


@pytest.mark.parametrize(
    "values, told",
    [
        (np.zeros((1, 4)), "at least two rows"),
        (np.zeros(4), "at least two rows"),
        (np.full((3, 2), np.nan), "not finite"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(values, told):
    assert told in message_of(frechet.compare, values, np.zeros((3, 4)))


def test_features_of_two_extractors_are_refused():
    assert "use one extractor" in message_of(frechet.compare, np.zeros((3, 4)), np.zeros((3, 5)))
