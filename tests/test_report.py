"""report.html: what it says, that it stands on its own, and that it works in a browser."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from deeplab_jax import pictures, report
from deeplab_jax.data.labels import labels, voc_palette
from deeplab_jax.tally import Shown, Tally

NASTY = "<img src=x onerror=alert(1)>'\"&\x1b[31m"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture
def page():
    rng = np.random.default_rng(0)
    tally = Tally(4, 255, (1, 2, 5, 10), upper_bounds=(8,))
    shown = Shown(12, 3)
    for place in range(12):
        truth = np.kron(rng.integers(0, 3, (4, 6)), np.ones((10, 10), int))
        pred = np.where(rng.random(truth.shape) < place / 12, truth, 0)
        iou = tally.add(truth, pred)
        layers = {
            title: np.repeat((60 * ids).astype(np.uint8)[..., None], 3, axis=-1)
            for title, ids in (("image", truth), ("truth", truth), ("prediction", pred))
        }
        shown.add(place, iou, lambda place=place, iou=iou, layers=layers: report.Example(
            f"scene {place}", iou, layers
        ))  # fmt: skip
    known = labels(["background", "road", NASTY, "never seen"])
    figures = tally.results(known.names)
    settings = {"weights": NASTY, "mirrored": False, "images": 1}
    return report.page(figures, tally.total, known, shown.groups(), settings)


def test_it_holds_every_figure_and_needs_nothing_else(page):
    assert "mean IoU without background" in page
    assert re.search(r"Upper bounds.*<th>stride 8</th><td>\d+\.\d\d %</td>", page)
    assert "frequency weighted IoU" in page
    assert "<th>mirrored</th><td>no</td>" in page
    assert "<th>images</th><td>1</td>" in page
    row = re.search(r"<tr><th><span[^>]*></span>never seen.*?</tr>", page)[0]
    assert row.count("–") == 2  # IoU and accuracy of a class that is nowhere
    assert not re.search("(src|href)=['\"](?!data:)", page)
    assert "http" not in page


def test_names_from_files_stay_text(page):
    assert "<img src=x" not in page
    assert "\x1b" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 2


def test_it_shows_the_best_the_worst_and_some_between(page):
    best, worst, spread = (
        [int(n) for n in re.findall(r"<figcaption>scene (\d+)", part)]
        for part in page.split("class=gallery")[1:]
    )
    assert best == [11, 10, 9]
    assert worst == [0, 1, 2]
    assert spread == [0, 5, 11]


def test_an_overlay_blends_classes_and_leaves_background():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (pictures.ROWS + 44, 30, 3)).astype(np.uint8)
    ids = rng.integers(0, 4, image.shape[:2])
    palette = voc_palette()
    drawn = pictures.overlay(image, ids, palette, opacity=0.6)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[ids == 0], image[ids == 0])
    mixed = 0.4 * image + 0.6 * palette[ids]
    assert np.abs(drawn.astype(float) - mixed)[ids > 0].max() <= 0.51


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_slider_works_in_a_browser(page, tmp_path):
    check = """<script>
      const slider = document.querySelector("input[type=range]");
      const layers = slider.closest("figure").querySelectorAll(".stack img");
      const seen = [];
      for (const value of [0, 0.5, 1, 2]) {
        slider.value = value;
        slider.dispatchEvent(new Event("input"));
        seen.push([...layers].map(layer => getComputedStyle(layer).opacity).join(" "));
      }
      const loaded = [...document.images].every(image => image.complete && image.naturalWidth);
      document.title = JSON.stringify([loaded, document.images.length, seen]);
    </script>"""
    file = tmp_path / "report.html"
    file.write_text(page.replace("</html>", f"{check}</html>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    title = re.search(r"<title>(.*?)</title>", done.stdout)[1]
    assert title == '[true,28,["1 0 0","1 0.5 0","1 1 0","1 1 1"]]'
