"""The report opens without network, shows every figure it names, and survives awkward results."""

import csv
import html.parser
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from msm.evaluation import metrics
from msm.evaluation import summary as evaluation
from msm.evaluation.calibration import calibration_maps
from msm.infra.errors import UserError
from msm.reports import evaluation_page as report
from msm.reports import figures
from tests.helpers.toy_data import column_masks, phantom


def make_round(color=False, size=32):
    """Four slices, two solvers; the second drew samples."""
    rng = np.random.default_rng(0)
    images = phantom(size, 4)
    reference = np.stack([np.abs(images) - 1] * 3, -1).astype(np.float32) if color else images
    samples = [reference + 0.1 * rng.normal(size=reference.shape).astype(np.float32) for _ in range(3)]
    mean, std = evaluation.summarize_samples(np.stack(samples))
    return {
        "example_id": np.arange(10, 14, dtype=np.int32),
        "reference": reference,
        "mask": (rng.random((4, size, size, 1)) < 0.6) if color else column_masks(size, 4),
        "zero_filled/mean": reference * 0.8,
        "zero_filled/seconds": np.full(4, 0.01),
        "msm/mean": mean,
        "msm/std": std,
        **{f"msm/{kind}": values for kind, values in calibration_maps(np.stack(samples), reference).items()},
        "msm/sample": samples[0],
        "msm/seconds": np.full(4, 1.5),
    }


def make_summary(rows, primary="msm", volumes=(), absent=None, **run):
    return evaluation.summarize(rows, primary, run, {"msm": 50}, {"msm": 3}, volumes=volumes, absent=absent)


class Page(html.parser.HTMLParser):
    """Collects what a page refers to and checks that its tags nest."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.tags, self.stack, self.text = [], [], [], []
        self.feed(text)
        assert not self.stack, f"unclosed {self.stack}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for key, value in attributes if key in ("src", "href")]
        if tag not in ("meta", "img", "link", "br", "input"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("color", [False, True])
def test_report_is_complete_and_self_contained(tmp_path, color):
    arrays = make_round(color)
    rows = evaluation.measure_round(arrays)
    summary = make_summary(
        rows,
        title="A <title> & more",
        notes=["Coils are simulated."],
        command="python main.py",
        hyper={"msm": {"eta": 0.85, "gamma": 1.0}},
    )
    path = report.write_report(tmp_path, summary, rows, arrays)
    content = path.read_text()
    page = Page(content)
    assert {"link", "iframe"}.isdisjoint(page.tags) and "http" not in content
    shown = set(page.sources) | {f"figures/{name}" for name in re.findall(r"viewer_[0-9]+_[0-9]+\.webp", content)}
    assert shown == {f"figures/{file.name}" for file in (tmp_path / "figures").iterdir()}
    text = " ".join(page.text)
    for expected in (
        "A <title> & more",
        "Coils are simulated.",
        "python main.py",
        "msm (eta 0.85, gamma 1)",
        "Zero-filled",
        "NFE",
        "data range",
    ):
        assert expected in text
    assert f"{summary['gains']['zero_filled']['psnr']['mean']:+.2f} dB" in text
    assert f"{summary['solvers']['msm']['psnr']['mean']:.2f}" in text
    assert len(page.sources) == 2 + len(evaluation.choose_slices(rows, "msm"))


def test_stale_pictures_go_and_a_missing_slice_is_named(tmp_path):
    arrays = make_round()
    rows = evaluation.measure_round(arrays)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "slice_99999.png").write_bytes(b"old")
    report.write_report(tmp_path, make_summary(rows), rows, arrays)
    assert not (tmp_path / "figures" / "slice_99999.png").exists()
    few = {key: value[:1] for key, value in arrays.items()}
    with pytest.raises(UserError, match="no picture of slice"):
        report.write_report(tmp_path, make_summary(rows), rows, few)


def test_failed_reconstruction_is_shown_as_such(tmp_path):
    arrays = make_round()
    arrays["msm/mean"] = arrays["msm/mean"].copy()
    arrays["msm/mean"][0] = np.nan
    rows = evaluation.measure_round(arrays)
    summary = make_summary(rows)
    content = report.write_report(tmp_path, summary, rows, arrays).read_text()
    assert "not finite" in content and "Slice 10: worst" in content
    report.write_summary(tmp_path / "summary.json", summary)
    stored = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert stored["solvers"]["msm"]["psnr"]["mean"] is None


def test_a_slice_whose_reference_holds_nothing_is_named(tmp_path):
    arrays = make_round()
    arrays["reference"][2] = 0
    rows = evaluation.measure_round(arrays)
    content = report.write_report(tmp_path, make_summary(rows), rows, arrays).read_text()
    assert "hold nothing to compare: 12." in content and ">nan" not in content and "not finite" not in content


def test_report_of_one_slice_and_a_solver_without_samples(tmp_path):
    arrays = {key: value[:1] for key, value in make_round().items() if not key.startswith("msm")}
    rows = evaluation.measure_round(arrays)
    page = Page(report.write_report(tmp_path, make_summary(rows, "zero_filled"), rows, arrays).read_text())
    assert len(page.sources) == 2
    text = " ".join(page.text)
    assert "Bold" not in text and "standard error" not in text and "Uncertainty" not in text and "crps" not in text


def tables_of(content):
    """The tables of the part 'Image quality' by the heading above them: lists of lists of cells, tags left out."""
    part = content[content.index("<h2>Image quality") : content.index("<h3>Gain")]
    part = part.replace('<div class="scroll">', "").replace("</table></div>", "</table>")
    tables = {}
    for heading, body in re.findall(r"<h3>(.*?)</h3>\n<table.*?>\n(.*?)</table>", part, re.DOTALL):
        lines = [re.findall(r"<t[hd]>(.*?)</t[hd]>", line) for line in body.splitlines()]
        tables[heading] = [[re.sub("<.*?>", "", cell) for cell in line] for line in lines]
    return tables, " ".join(Page(part).text)


def test_tables_per_slice_and_per_volume(tmp_path):
    arrays = make_round() | {"volume": np.array(["left", "left", "left", "right"])}
    rows, volumes = evaluation.measure_round(arrays), evaluation.measure_volumes(arrays)
    summary = make_summary(rows, volumes=volumes, absent={"lpips": "LPIPS is absent: <no> weights."})
    tables, text = tables_of(report.write_report(tmp_path, summary, rows, arrays).read_text())
    assert list(tables) == ["Per slice", "Per volume"]
    assert tables["Per slice"][0][:4] == ["Method", "PSNR (dB)", "SSIM", "NMSE"]
    assert tables["Per volume"][0] == ["Method", "PSNR (dB)", "SSIM", "NMSE"]
    entry = summary["volumes"]["solvers"]["msm"]["psnr"]
    assert tables["Per volume"][2][1] == f"{entry['mean']:.2f} &plusmn; {entry['standard_error']:.2f}"
    assert "Mean over 2 volumes: left (3 slices), right (1 slice) \u00b1 standard error" in text
    assert "absent" not in text and "single images" not in text  # nothing is said of what is not there
    report.write_metrics_csv(tmp_path / "volumes.csv", volumes)
    lines = (tmp_path / "volumes.csv").read_text().splitlines()
    assert lines[0] == "volume,slices,solver,psnr,ssim,nmse" and len(lines) == 5
    report.write_metrics_csv(tmp_path / "volumes.csv", [])
    assert not (tmp_path / "volumes.csv").exists()


def test_one_volume_has_no_standard_error(tmp_path):
    arrays = make_round() | {"volume": np.array(["head"] * 4)}
    rows, volumes = evaluation.measure_round(arrays), evaluation.measure_volumes(arrays)
    summary = make_summary(rows, volumes=volumes)
    tables, text = tables_of(report.write_report(tmp_path, summary, rows, arrays).read_text())
    assert tables["Per volume"][2][1] == f"{summary['volumes']['solvers']['msm']['psnr']['mean']:.2f}"
    assert "One volume: head (4 slices). Bold: best." in text


def test_published_definitions_stand_beside_the_standard_ones(tmp_path):
    arrays = make_round()
    measures = [*metrics.STANDARD, *metrics.get_paper(lambda one, other: 0.125, "vgg16")]
    rows = evaluation.measure_round(arrays, measures=measures)
    definitions = {measure.name: measure.definition for measure in measures}
    summary = evaluation.summarize(rows, "msm", {}, {"msm": 50}, definitions=definitions)
    content = report.write_report(tmp_path, summary, rows, arrays).read_text()
    tables, text = tables_of(content)
    assert [heading for heading in tables["Per slice"][0] if "published" in heading] == []
    table = tables["Per slice, as the published code measures"]
    assert table[0] == [
        *("Method", "PSNR (dB)", "PSNR (dB), as published", "SSIM", "SSIM, as published", "LPIPS, as published"),
    ]
    assert table[1][0] == "Zero-filled" and table[1][5].startswith("0.125")
    means = summary["solvers"]["zero_filled"]  # is the reference times 0.8, which stretching undoes
    assert means["psnr_paper"]["mean"] > 100 > means["psnr"]["mean"]
    assert "for comparison with published tables only" in text and "single images" not in text
    assert "<dt>ssim_paper</dt>" in content and "<dt>per volume</dt>" not in content
    report.write_metrics_csv(tmp_path / "metrics.csv", rows)
    assert (
        (tmp_path / "metrics.csv")
        .read_text()
        .startswith("example_id,solver,psnr,ssim,nmse,psnr_paper,ssim_paper,lpips_paper,seconds")
    )


def test_csv_and_summary_hold_every_number(tmp_path):
    arrays = make_round()
    rows = evaluation.measure_round(arrays)
    report.write_metrics_csv(tmp_path / "metrics.csv", rows)
    stored = list(csv.DictReader(io.StringIO((tmp_path / "metrics.csv").read_text())))
    assert len(stored) == len(rows) == 8
    for row, line in zip(rows, stored, strict=True):
        assert line["solver"] == row["solver"] and float(line["psnr"]) == row["psnr"]
        assert (line["std_error_correlation"] == "") == (row["solver"] == "zero_filled")
    summary = make_summary(rows, slices=np.int64(4), rates=(1.5, np.float32(2.5)), bad=math.inf)
    report.write_summary(tmp_path / "summary.json", summary)
    loaded = json.loads((tmp_path / "summary.json").read_text())
    assert loaded["solvers"]["msm"]["psnr"] == summary["solvers"]["msm"]["psnr"]
    assert loaded["run"] == {"slices": 4, "rates": [1.5, 2.5], "bad": None}


def test_slice_figure_keeps_every_pixel_square_and_upright():
    """Every mask pixel of the picture is the stored one, at a whole magnification."""
    arrays = make_round()
    arrays["mask"] = np.zeros((4, 1, 32, 32), bool)
    arrays["mask"][:, :, 0, :16] = True  # first row, left half
    scores = {row["solver"]: row for row in evaluation.measure_round(arrays) if row["example_id"] == 10}
    pixels = np.asarray(Image.open(io.BytesIO(figures.slice_figure(arrays, 0, scores))).convert("L")).astype(int)
    assert pixels.shape[1] == 4 * 256 + 5 * round(0.09 * 256 / 1.95)
    left = round(0.09 * 256 / 1.95)
    column = pixels[:, left + 64]
    dark = np.flatnonzero(column[-(256 + 68) :] == 0)
    top = np.flatnonzero(pixels[:, left + 200] == 0)
    assert dark.size == 256 - 8 and top[-1] - top[top > pixels.shape[0] // 2][0] == 255


def test_training_grid_shows_mask_and_marks_what_is_not_finite():
    zero_filled = phantom(32, 3)
    mask = column_masks(32, 3)
    samples = np.stack([zero_filled, zero_filled])
    samples[1, 2] = np.nan
    grid = figures.training_grid(zero_filled, mask, samples)
    assert grid.shape == (4 * 132, 3 * 132, 3) and grid.dtype == np.uint8
    shown = grid[132 + 2 : 132 + 130 : 4, 2:130:4, 0]
    np.testing.assert_array_equal(shown == 255, np.broadcast_to(mask[0, 0], (32, 32)))
    np.testing.assert_array_equal(
        grid[3 * 132 + 2 : 3 * 132 + 130, 266:394], np.broadcast_to([255, 0, 0], (128, 128, 3))
    )
    np.testing.assert_array_equal(grid[2:130, 2:130], grid[2 * 132 + 2 : 2 * 132 + 130, 2:130])


def test_training_grid_of_colour_images():
    images = np.zeros((2, 16, 16, 3), np.float32)
    images[..., 0] = 1.0
    grid = figures.training_grid(images, np.ones((2, 16, 16, 1), bool), images[None])
    np.testing.assert_array_equal(grid[2, 2], [255, 128, 128])


def test_slices_of_several_shapes_and_volumes_share_one_report(tmp_path):
    """Slices have the scanner's numbers in page, table and file names; a picture comes from the round of its shape."""
    known = {"volume": np.array(["a/head.h5"] * 4), "slice": np.arange(4) + 20, "aspect": np.full(4, 1.5)}
    one, other = make_round() | known, make_round(size=24)
    other |= {"example_id": np.arange(50, 54, dtype=np.int32), "volume": np.array(["b.h5"] * 4), "slice": np.arange(4)}
    groups = evaluation.merge_by_shape([one, other | {"aspect": np.ones(4)}])
    assert [len(group["example_id"]) for group in groups] == [4, 4]
    rows = [row for group in groups for row in evaluation.measure_round(group)]
    report.write_report(tmp_path, make_summary(rows), rows, groups)
    names = {path.name for path in (tmp_path / "figures").glob("slice_*.png")}
    assert names and all(re.fullmatch(r"slice_(a_head\.h5_\w{6}_0002[0-3]|b\.h5_0000[0-3])\.png", n) for n in names)
    text = (tmp_path / "report.html").read_text()
    assert "a/head.h5, 2" in text and all(f"figures/{name}" in text for name in names)
    report.write_metrics_csv(tmp_path / "metrics.csv", rows)
    with open(tmp_path / "metrics.csv") as file:
        assert {(row["volume"], row["slice"]) for row in csv.DictReader(file)} == {
            *(("a/head.h5", str(n)) for n in range(20, 24)), *(("b.h5", str(n)) for n in range(4))
        }  # fmt: skip
