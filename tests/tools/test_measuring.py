"""benchmarks/measuring.py: a table is gone on with for equal settings, data and network alone; what is published."""

import pytest

from msm.benchmarks import measuring, quality_vs_nfe
from msm.configs import brain64_msm, photos64_msm
from msm.configs.default import get_config
from msm.configs.tasks import PUBLISHED_IMAGES, PUBLISHED_MRI
from tests.helpers.checks import message_of


def test_a_table_is_continued_for_equal_settings_alone(tmp_path):
    measuring.check_same(tmp_path, get_config(), {}, 1)
    measuring.check_same(tmp_path, get_config(), {"row": 1}, 1)
    other = get_config()
    other.eval.folder, other.eval.checkpoint, other.training.num_steps = "b", "c", 3
    measuring.check_same(tmp_path, other, {"row": 1}, 1)
    assert "choose another --out" in message_of(measuring.check_same, tmp_path, get_config(), {"row": 1}, 2)
    for section, name, value in (("eval", "split", "validation"), ("dps", "zeta", 3.0), ("data", "dir", "elsewhere")):
        other = get_config()
        other[section][name] = value
        assert "choose another --out" in message_of(measuring.check_same, tmp_path, other, {"row": 1}, 1)
    measuring.check_same(tmp_path, other, {}, 1)  # no row yet: nothing to mix
    (tmp_path / "table_of.txt").unlink()
    assert "choose another --out" in message_of(measuring.check_same, tmp_path, other, {"row": 1}, 1)


@pytest.mark.parametrize(("config", "switches"), [(brain64_msm, PUBLISHED_MRI), (photos64_msm, PUBLISHED_IMAGES)])
def test_the_published_form_is_that_of_the_kind_of_data(config, switches):
    found = quality_vs_nfe.families(config.get_config())["published"]
    assert found["published form"] == (1, switches)
    assert found["published form, batched"] == (1, {**switches, "reinject": False})
