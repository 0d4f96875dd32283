"""Names of scans, settings and solvers come from data: a page shows them as text, and files stay in its folder."""

import numpy as np
import pytest

from msm.evaluation import summary as evaluation
from msm.reports import evaluation_page as report
from tests.reports.test_report import Page, make_round, make_summary

NAMES = [
    "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "'\"><b onclick='x'>",
    "../../etc/x\n{{ 7*7 }}",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_from_data_are_text(tmp_path, name):
    arrays = make_round() | {"volume": np.array([name, name, "other", "other"])}
    rows = evaluation.measure_round(arrays)
    volumes = evaluation.measure_volumes(arrays)
    run = {"title": name, "notes": [name], "command": name, name: name, "hyper": {name: {name: 1.0}}}
    summary = make_summary(rows, volumes=volumes, absent={"lpips": name}, **run)
    page = report.write_report(tmp_path / "eval", summary, rows, arrays)
    text = page.read_text()
    parsed = Page(text)
    assert parsed.tags.count("script") == text.count("<script")
    plain = Page(report.write_report(tmp_path / "plain", make_summary(rows), rows, make_round()).read_text())
    assert not {"b"} & set(parsed.tags) - set(plain.tags) and "x" not in parsed.sources
    assert "<script>alert" not in text and "<img src=x" not in text and "onclick='x'" not in text
    assert all(source.startswith(("figures/", "data:", "#")) or source in text for source in parsed.sources)
    inside = {path.name for path in tmp_path.iterdir()}
    assert inside == {"eval", "plain"} and not list(tmp_path.glob("**/etc"))
