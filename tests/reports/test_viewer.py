"""The slices' viewer: its sheets hold the pictures, its size has a limit, and a browser shows it without a network."""

import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from msm.evaluation import summary as evaluation
from msm.evaluation.calibration import calibration_maps
from msm.reports import evaluation_page, viewer
from tests.helpers.toy_data import column_masks, phantom

HOSTILE = "<img src=x onerror=document.title='hit'>"


def make_round(count=5, size=32, samples=3):
    """Slices of a solver without and one with samples; values grow with the slice, so that slices can be told apart."""
    rng = np.random.default_rng(0)
    reference = np.concatenate([phantom(size, 1)] * count) * np.linspace(0.5, 2, count)[:, None, None]
    reference = reference.astype(np.complex64)
    drawn = np.stack([reference + 0.1 * rng.normal(size=reference.shape).astype(np.float32) for _ in range(samples)])
    mean, std = evaluation.summarize_samples(drawn)
    return {
        "example_id": np.arange(10, 10 + count, dtype=np.int32),
        "volume": np.array([HOSTILE] * count),
        "reference": reference,
        "mask": np.concatenate([column_masks(size, 1)] * count),
        "zero_filled/mean": reference * 0.8,
        "zero_filled/seconds": np.full(count, 0.01),
        "msm/mean": mean,
        "msm/std": std,
        "msm/sample": drawn[0],
        "msm/seconds": np.full(count, 1.5),
        **{f"msm/{kind}": values for kind, values in calibration_maps(drawn, reference).items()},
        **{f"msm/{kind}": values for kind, values in viewer.film_of(drawn).items()},
    }


def write_report(folder, arrays):
    rows = evaluation.measure_round(arrays)
    run = {"title": f"Slices of {HOSTILE}", "coils": 4, "command": HOSTILE}
    summary = evaluation.summarize(rows, "msm", run, {"msm": 50}, {"msm": 3})
    return evaluation_page.write_report(folder, summary, rows, arrays)


def test_film_keeps_every_sample_in_the_units_of_its_peak():
    samples = np.stack([phantom(16, 2), 0.5 * phantom(16, 2)])
    kept = viewer.film_of(samples)
    assert kept["film"].shape == (2, 2, 16, 16) and kept["film"].dtype == np.uint8
    restored = kept["film"] / 255 * kept["film_peak"][:, None, None, None]
    np.testing.assert_allclose(restored, np.abs(samples).swapaxes(0, 1), atol=np.abs(samples).max() / 500)


def test_sheets_hold_every_slice_of_every_layer_exactly():
    arrays = make_round(7)
    slices = viewer.Slices(arrays)
    files, layout = viewer.sheets(slices, viewer.CODINGS[0])
    assert list(layout["layers"]) == [
        *("reference", "mask", "zero_filled/mean", "zero_filled/error", "msm/mean", "msm/error", "msm/std"),
        *("msm/film 0", "msm/film 1", "msm/film 2"),
    ]
    for layer, names in layout["layers"].items():
        sheet = np.asarray(Image.open(io.BytesIO(files[names[0]])).convert("L"))
        for index in range(7):
            top, left = 32 * (index // layout["columns"]), 32 * (index % layout["columns"])
            np.testing.assert_array_equal(sheet[top : top + 32, left : left + 32], slices.picture(layer, index))
    expected = np.abs(arrays["reference"][3]) / np.abs(arrays["reference"][3]).max()
    np.testing.assert_allclose(slices.picture("reference", 3) / 255, expected, atol=1 / 500)


def test_what_does_not_fit_is_compressed_and_the_page_says_so():
    slices = viewer.Slices(make_round(40))
    exact = viewer.choose_coding(slices)
    assert exact == viewer.CODINGS[0]
    whole = sum(map(len, viewer.sheets(slices, exact)[0].values()))
    small = viewer.choose_coding(slices, budget=whole // 4)
    assert small != exact
    assert sum(map(len, viewer.sheets(slices, small)[0].values())) < whole / 3
    assert viewer.choose_coding(slices, budget=0) == viewer.CODINGS[-1]
    files, data = viewer.viewer_of(make_round(4), [], {"first": 10})
    assert data["coding"] == "Pictures are exact to 8 bits." and set(files) == {
        n for v in data["layers"].values() for n in v
    }


def test_pixels_that_are_not_square_and_the_scanners_slice_numbers_are_shown():
    arrays = make_round(2) | {"aspect": np.full(2, 2.0), "slice": np.array([7, 9])}
    _, data = viewer.viewer_of(arrays, [], {"first": 10})
    assert data["aspect"] == 0.5
    assert data["slices"] == [f"{HOSTILE}, slice 7", f"{HOSTILE}, slice 9"]
    _, plain = viewer.viewer_of(make_round(2), [], {"first": 10})
    assert plain["aspect"] == 1.0 and plain["slices"][0].endswith("example 10")


def test_colours_and_whole_measurements_have_panels():
    images = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    arrays = {
        "example_id": np.arange(3), "reference": images, "mask": np.ones((3, 1, 1, 1), bool),
        "measured": images[:, ::2, ::2], "tv/mean": images, "tv/seconds": np.ones(3),
    }  # fmt: skip
    _, data = viewer.viewer_of(arrays, [], {"first": 0})
    assert [panel["name"] for panel in data["panels"]] == ["Reference", "Total variation", "Measured"]
    slices = viewer.Slices(arrays)
    np.testing.assert_allclose(slices.picture("tv/mean", 1) / 127.5 - 1, images[1], atol=1 / 200)
    assert slices.picture("measured", 0).shape == (16, 16, 3)


PROBE = """
<pre id="probe"></pre>
<script>
addEventListener("load", () => setTimeout(() => {
  const found = { title: document.title, errors: window.failures };
  const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const state = () => [Number(document.getElementById("slice").value), document.getElementById("name").textContent];
  const layers = () => [...document.querySelectorAll(".picture")].map((p) => p.style.backgroundImage);
  press("Home"); found.home = state(); const image = layers();
  press("ArrowRight"); found.right = state();
  press("End"); found.end = state(); press("ArrowRight"); found.beyond = state();
  press("ArrowLeft"); found.left = state();
  press("Home"); press("e"); found.errors_shown = layers().filter((l, i) => l !== image[i]).length;
  press("s"); found.stds_shown = layers().filter((l, i) => l !== image[i]).length; press("i");
  press("f"); found.film = layers().filter((l, i) => l !== image[i]).length; press("f");
  found.after_film = JSON.stringify(layers()) === JSON.stringify(image);
  const slope = () => document.querySelector("#map-grey feFuncR").getAttribute("slope");
  const before = slope(); const width = document.getElementById("window");
  width.value = 50; width.dispatchEvent(new Event("input")); found.contrast = slope() / before;
  press("r"); found.reset = slope() === before;
  const luminance = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map((v) => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c)) return c; } return "rgb(255, 255, 255)"; };
  let worst = 99;
  for (const e of document.querySelectorAll("body *")) {
    if (!e.offsetParent || ![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [luminance(getComputedStyle(e).color), luminance(ground(e))].sort((x, y) => y - x);
    worst = Math.min(worst, (a + 0.05) / (b + 0.05));
  }
  found.readable = worst;
  const shape = document.querySelector(".picture").getBoundingClientRect();
  found.aspect = shape.width / shape.height;
  found.images = [...document.images].map((i) => i.naturalWidth > 0);
  document.getElementById("probe").textContent = JSON.stringify(found);
}, 300));
</script>
"""


@pytest.fixture(scope="module")
def in_browser(tmp_path_factory):
    """What headless Chromium finds in the page, and what it wrote to the console."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    folder = tmp_path_factory.mktemp("report")
    arrays = make_round() | {"aspect": np.full(5, 1.5), "slice": np.arange(5) + 40}
    path = write_report(folder, arrays)
    early = "window.failures = []; addEventListener('error', (e) => failures.push(String(e.message)));"
    probed = folder / "probed.html"
    probed.write_text(
        path.read_text().replace("<head>", f"<head><script>{early}</script>", 1).replace("</body>", PROBE + "</body>")
    )
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1300,900",
        "--virtual-time-budget=4000", "--dump-dom", probed.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)[1]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(probe)), console


def test_browser_shows_the_report_offline_and_without_an_error(in_browser):
    found, console = in_browser
    assert console == [] and found["errors"] == []
    assert all(found["images"]) and len(found["images"]) >= 3


def test_names_from_data_are_text(in_browser):
    found, _ = in_browser
    assert found["title"] == f"Slices of {HOSTILE}"
    assert found["home"][1] == f"{HOSTILE}, slice 40 (1 of 5)"


def test_keys_move_the_slider_and_switch_what_is_shown(in_browser):
    found, _ = in_browser
    assert [found[name][0] for name in ("home", "right", "end", "beyond", "left")] == [0, 1, 4, 4, 3]
    assert found["errors_shown"] == 2 and found["stds_shown"] == 1  # of the solvers; reference and mask stay
    assert found["film"] == 1 and found["after_film"]
    assert found["contrast"] == pytest.approx(2) and found["reset"]


def test_text_is_readable_and_pixels_have_their_shape(in_browser):
    found, _ = in_browser
    assert found["readable"] >= 4.5  # WCAG 2, level AA
    assert found["aspect"] == pytest.approx(1 / 1.5, rel=0.01)
