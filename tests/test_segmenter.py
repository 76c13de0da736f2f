"""deeplab_jax.load: every kind of thing that holds a network."""

import json

import numpy as np
import pytest
from conftest import CONFIGS
from PIL import Image

import deeplab_jax
from deeplab_jax import checkpoint, config, convert, models
from deeplab_jax import train as training
from deeplab_jax.data.labels import labels
from deeplab_jax.errors import DataError, WeightsError
from deeplab_jax.predict import predict

BLOCKS = np.random.default_rng(0).integers(0, 256, (4, 5, 3))
IMAGE = np.kron(BLOCKS, np.ones((10, 10, 1))).astype(np.uint8)
SMALL = {
    "name": "v3",
    "backbone": "mobilenet_v2",
    "num_classes": 3,
    "atrous_rates": None,
    "multi_grid": None,
}


def workdir(folder, channels=3, preset="v3.py:folder", **overrides):
    """What training leaves, with fresh weights: (module, variables)."""
    settings = config.load(f"{CONFIGS}/{preset}", {"eval.crop_size": (65, 65)} | overrides)
    module = models.build(**config.eval_model(settings))
    variables = training.init_variables(module, 0, channels)
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json(settings))
    with checkpoint.Checkpoints(folder, 1) as kept:
        kept.save(7, variables, {})
    return module, variables


def model(**overrides):
    return {f"model.{key}": value for key, value in (SMALL | overrides).items()}


def test_a_workdir_of_a_network_without_batch_norm(tmp_path):
    given = model(name="v1", backbone="vgg16", fc_channels=8, output_stride=8, atrous_rates=(2,))
    given["predict.raw_ids"] = True
    module, variables = workdir(tmp_path / "run", preset="v1.py:folder", **given)
    network = deeplab_jax.load(tmp_path / "run")
    expected = predict(
        module, variables, IMAGE, crop_size=(65, 65), normalization="imagenet", align_corners=True
    )
    assert network.classes == ("class_0", "class_1", "class_2")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["predict"]["normalization"] == "imagenet"
    np.testing.assert_array_equal(network.segment(IMAGE), expected)
    assert network.overlay(IMAGE).shape == IMAGE.shape


def test_names_colours_and_photographs(tmp_path):
    module, variables = workdir(tmp_path / "run", **model(logits_stddev=30.0))
    known = labels(["ground", "road", "car"]).mapped({0: 0, 7: 1, 9: 2})
    (tmp_path / "run" / "labels.json").write_text(known.to_json())
    network = deeplab_jax.load(tmp_path / "run", crop_size=None)
    assert network.classes == ("ground", "road", "car")
    photo = Image.fromarray(IMAGE)
    photo.getexif()[0x0112] = 6  # turned by a quarter
    photo.save(tmp_path / "photo.png", exif=photo.getexif())
    turned = np.ascontiguousarray(np.rot90(IMAGE, -1))
    expected = predict(module, variables, turned)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(network.segment(tmp_path / "photo.png"), expected)
    np.testing.assert_array_equal(network.segment(photo), expected)
    assert photo.size == (50, 40)  # as it was
    for wrong in (IMAGE[..., :2], IMAGE[0], IMAGE.astype(np.float32)):
        with pytest.raises(ValueError, match=r"an image is \[H, W, 3\] uint8, not"):
            network.segment(wrong)


def test_images_of_other_channels(tmp_path):
    data = {"data.name": "nyudv2", "data.channels": "rgb_depth"}
    workdir(tmp_path / "run", 4, **model(), **data)
    network = deeplab_jax.load(tmp_path / "run")
    assert network.segment(np.dstack([IMAGE, IMAGE[..., :1]])).shape == (40, 50)
    with pytest.raises(DataError, match=r"sees 4 channels: give it an array \[H, W, 4\]"):
        network.segment(tmp_path / "photo.png")


def test_a_weight_file_and_what_an_import_made_of_it(tmp_path):
    keywords = {key: value for key, value in SMALL.items() if key != "atrous_rates"}
    keywords |= {"image_pooling": False, "aspp_channels": 16, "output_stride": 16}
    module = models.build(**keywords)
    variables = training.init_variables(module, 0)
    description = {"model": keywords, "data": {"normalization": "imagenet"}, "source": "a test"}
    convert.export(tmp_path / "model.safetensors", variables, description)
    convert.convert(tmp_path / "model.safetensors", tmp_path / "imported", None, None)
    expected = predict(module, variables, IMAGE, normalization="imagenet")
    for path in (tmp_path / "model.safetensors", tmp_path / "imported"):
        np.testing.assert_array_equal(deeplab_jax.load(path).segment(IMAGE), expected)


def test_what_segments_nothing_is_refused(tmp_path):
    given = {"model.backbone": "mobilenet_v2", "model.num_classes": 5}
    workdir(tmp_path / "run", preset="imagenet.py", **given)
    with pytest.raises(WeightsError, match="a classifier of images"):
        deeplab_jax.load(tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"without its config\.json"):
        deeplab_jax.load(tmp_path / "run")
    with pytest.raises(WeightsError, match="nowhere"):
        deeplab_jax.load(tmp_path / "nowhere")
