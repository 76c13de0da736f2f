"""The mathematics behind the papers' figures, and that they are drawn."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import CONFIGS, ROOT
from PIL import Image

from deeplab_jax import config as configuration
from deeplab_jax import ops
from deeplab_jax.data.labels import SYNTHETIC_CLASSES, labels
from deeplab_jax.data.synthetic import Synthetic

sys.path.append(str(ROOT))
from experiments.figures import __main__ as figures
from experiments.figures import drawing, subject


@pytest.fixture(scope="module")
def scenes():
    """What the figures show without weights, of two scenes."""
    source = [Synthetic("val")[i] for i in (3, 7)]
    found = labels(SYNTHETIC_CLASSES)
    settings = configuration.load(f"{CONFIGS}/v3plus.py")
    scores = [subject.true_scores(stride, len(found.names)) for stride in (4, 16)]
    palette = subject.palette_of(found)
    return subject.Subject(source, source[0], found.names, palette, settings, None, None, *scores)


def test_rate_2_on_the_whole_image_is_rate_1_on_half_of_it(scenes):
    grey = scenes.scene["image"][..., 0].astype(np.float32)
    kernel = drawing.gaussian_derivative(7)
    sparse = drawing.convolve_2d(grey[::2, ::2], kernel, 1)
    dense = drawing.convolve_2d(grey, kernel, 2)
    assert dense.shape == grey.shape
    assert np.abs(sparse).max() > 1
    np.testing.assert_allclose(dense[::2, ::2], sparse, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("rate", [1, 4])
def test_an_output_reads_the_inputs_at_its_rate(rate):
    jacobian = jax.jacobian(lambda x: drawing.convolve_1d(x, np.ones(3), rate))
    reads = np.asarray(jacobian(np.zeros(9, np.float32)))
    place = np.arange(9)
    np.testing.assert_array_equal(reads, np.isin(place - place[:, None], (-rate, 0, rate)))


@pytest.mark.parametrize("rate", [1, 6, 40, 65])
def test_valid_weights_are_the_taps_inside(rate):
    taps = drawing.valid_taps(65, rate)
    padding = ops.fixed_padding((3, 3), rate)
    shape, kernel = (1, 65, 65, 1), (3, 3, 1, 1)
    inside = ops.atrous.share_inside(shape, kernel, (rate, rate), padding)
    assert taps.mean() == pytest.approx(9 * inside)
    assert taps[0, 0] == (1 if rate >= 65 else 4)
    if rate >= 65:  # [V3] Sec. 3.3: the 3x3 kernel has become a 1x1 one
        assert (taps == 1).all()


def test_the_kernel_answers_a_ramp_with_its_slope():
    ramp = np.repeat(np.arange(33, dtype=np.float32)[:, None], 33, axis=1)
    kernel = drawing.gaussian_derivative(7)
    answer = drawing.convolve_2d(ramp, kernel, 1)[8:-8, 8:-8]
    np.testing.assert_allclose(answer, answer[0, 0], rtol=1e-4)
    assert answer[0, 0] > 0
    np.testing.assert_allclose(kernel, -kernel[::-1], atol=1e-7)


def test_true_scores_at_stride_1_are_the_truth(scenes):
    label = scenes.scene["label"]
    labelled = label != 255
    wrong = []
    for stride in (1, 4, 16):
        probs = subject.true_scores(stride, 9).probs(scenes.scene)
        assert probs.shape == (*label.shape, 9)
        wrong.append((probs.argmax(-1) != label)[labelled].mean())
    assert wrong[0] == 0 < wrong[1] < wrong[2]


def test_the_window_holds_the_longest_boundary():
    label = np.zeros((60, 80), np.uint8)
    label[20:30, 50:60] = 1
    top, left = drawing._busiest(label, 16)
    assert top <= 19
    assert top + 16 > 30
    assert left <= 49
    assert left + 16 > 60


def test_classes_have_colours_of_their_own(scenes):
    assert len(np.unique(scenes.palette[:9], axis=0)) == 9
    many = labels([f"class {i}" for i in range(10)])
    np.testing.assert_array_equal(subject.palette_of(many), many.palette)


@pytest.mark.parametrize("name", ["atrous_1d", "atrous_2d", "trimaps", "decoder"])
def test_drawn(scenes, name, tmp_path):
    drawing.FIGURES[name](scenes).savefig(tmp_path / "figure.png", dpi=50)
    with Image.open(tmp_path / "figure.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_mistakes_end_in_a_sentence(tmp_path, capsys):
    output = ["--output", str(tmp_path / "out"), "--config", f"{CONFIGS}/v3plus.py"]
    for arguments, code, sentence in (
        (["fields"], 2, "no figure fields; there are atrous_1d, "),
        (["decoder", "--workdir", str(tmp_path)], 4, f"error: {tmp_path}: no checkpoint here"),
        (["decoder", "--scene", "500"], 2, "error: --scene=500: there are 0 to 499"),
        (["fields_of_view", "--config", f"{CONFIGS}/v1.py"], 2, "wants a v3 or v3+ with an ASPP"),
    ):
        with pytest.raises(SystemExit) as exit:
            figures.main([*output, *arguments])
        assert exit.value.code == code
        assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_all_are_drawn_by_the_command(tmp_path):
    command = [sys.executable, "-m", "experiments.figures", "--output", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""})
    assert {path.stem for path in tmp_path.iterdir()} == drawing.FIGURES.keys()
