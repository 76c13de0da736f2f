"""The papers' figures: the mathematics they show, and that each is drawn."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import CONFIGS, ROOT
from PIL import Image

from deeplab_jax import config as configuration
from deeplab_jax.data import pipeline
from experiments.figures import drawing
from experiments.figures.subject import Subject, palette_of, true_scores


@pytest.fixture(scope="module")
def subject():
    """Without a network: true scores stand for one."""
    config = configuration.load(f"{CONFIGS}/v3plus.py")
    source = [pipeline.source(config.data, "val", 9)[i] for i in range(3)]
    labels = pipeline.class_labels(config.data, 9)
    fine, coarse = true_scores(4, 9), true_scores(16, 9)
    palette = palette_of(labels)
    return Subject(
        source, source[1], labels.names, palette, config, None, None, False, fine, coarse
    )


def test_half_the_samples_at_rate_1_are_the_whole_at_rate_2():
    rng = np.random.default_rng(0)
    image, kernel = rng.random((33, 47)).astype(np.float32), rng.random((3, 3))
    dense = drawing.convolve_2d(image, kernel, 2)
    sparse = drawing.convolve_2d(image[::2, ::2], kernel, 1)
    np.testing.assert_allclose(dense[::2, ::2], sparse, atol=1e-5)
    signal = drawing.convolve_1d(image[0], np.array([1.0, 2.0, 3.0]), 5)
    padded = np.pad(image[0], 5)
    expected = padded[:-10] + 2 * padded[5:-5] + 3 * padded[10:]
    np.testing.assert_allclose(signal, expected, atol=1e-5)


@pytest.mark.parametrize("rate", [1, 7, 40, 64])
def test_valid_taps_are_those_inside(rate):
    """[V3] Fig. 4: at a rate near the map's size only the middle tap is left."""
    inside = sum(
        (0 <= np.arange(65) + shift) & (np.arange(65) + shift < 65) for shift in (-rate, 0, rate)
    )
    np.testing.assert_array_equal(drawing.valid_taps(65, rate), np.outer(inside, inside))


def test_the_busiest_window_has_the_longest_boundary():
    label = np.zeros((60, 80), np.uint8)
    label[40:50, 60:72] = 1
    top, left = drawing._busiest(label, 20)
    assert 30 <= top <= 40
    assert 52 <= left <= 60


@pytest.mark.parametrize("name", ["atrous_1d", "atrous_2d", "trimaps", "decoder"])
def test_it_is_drawn(subject, name, tmp_path):
    drawing.FIGURES[name](subject).savefig(tmp_path / "figure.png", dpi=60)
    picture = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))
    assert (picture != 255).any(axis=-1).mean() > 0.02
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 30


@pytest.mark.slow
def test_all_of_them_by_one_command(tmp_path):
    command = [sys.executable, "-m", "experiments.figures", f"--output={tmp_path}", "--scene=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in tmp_path.iterdir()} == set(drawing.FIGURES)
    wrong = subprocess.run([*command, "fig5"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "there are atrous_1d" in wrong.stderr
