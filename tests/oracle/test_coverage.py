"""How much of a measurement w masks cover: independent draws by their formula, complementary ones much more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

from msm.operators.masks import RandomBoxes, RandomCartesian, mask_sequence

DRAWS, MOST = 512, 4


def coverage(masks, order):
    """Share of the entries inside at least one of the first 1, 2, ..., MOST masks: mean over DRAWS, standard error."""
    none = jnp.zeros(masks.inclusion_probability().shape, bool)

    def covered(key):
        drawn, _ = mask_sequence(masks, key, MOST, order, none)
        return jnp.mean(jnp.cumsum(drawn, axis=0) > 0, axis=range(1, drawn.ndim))

    values = np.asarray(jax.jit(jax.vmap(covered))(jax.random.split(jax.random.key(0), DRAWS)), np.float64)
    return values.mean(0), values.std(0) / np.sqrt(DRAWS)


BOXES = RandomBoxes(16, 4, 6)  # as published: 6 of 4x4 blocks missing, "p = 0.4"
COLUMNS = RandomCartesian(64, 6, 0.25)  # R = 4
INDEPENDENT = {BOXES: 1 - (6 / 16) ** np.arange(1, 5), COLUMNS: (6 + 58 * (1 - 0.75 ** np.arange(1, 5))) / 64}


@pytest.mark.parametrize("masks", [BOXES, COLUMNS])
def test_independent_masks_cover_what_their_probability_says(masks):
    mean, error = coverage(masks, "iid")
    assert np.all(np.abs(mean - INDEPENDENT[masks]) < 5 * error + 1e-6)


def test_complementary_columns_cover_all_that_their_number_allows():
    """No line is drawn twice before all are: E min(lines, Binomial(w lines, 1/R)) are covered outside the ACS."""
    mean, error = coverage(COLUMNS, "complement")
    for w in range(1, MOST + 1):
        drawn = np.arange(w * 58 + 1)
        expected = (6 + np.sum(np.minimum(58, drawn) * binom.pmf(drawn, w * 58, 0.25))) / 64
        assert abs(mean[w - 1] - expected) < 5 * error[w - 1]
    assert np.all(mean[1:] > INDEPENDENT[COLUMNS][1:] + 0.04)


def test_complementary_boxes_cover_more_than_independent_ones():
    """Two draws hold 20 of 16 blocks: everything where shifts agree, as they do for blocks of one pixel."""
    mean, _ = coverage(RandomBoxes(4, 4, 6), "complement")
    np.testing.assert_array_equal(mean, [np.float32(10 / 16), 1, 1, 1])
    mean, _ = coverage(BOXES, "complement")
    assert np.all(1 - mean[1:] < 0.5 * (1 - INDEPENDENT[BOXES][1:]))
