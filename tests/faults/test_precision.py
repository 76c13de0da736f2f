"""Evaluation in bfloat16 beside float32, of a network that has learned something."""

import json

import numpy as np
import pytest
from conftest import CONFIGS
from PIL import Image

from deeplab_jax import config as configuration
from deeplab_jax import main, networks, predict
from deeplab_jax.data import pipeline
from deeplab_jax.data.synthetic import Synthetic

TRAINED, EVALUATED = 240, 40  # scenes
# Few steps tell solids from thin things and from what is behind them, not yet one solid from
# another: groups of the scenes' ids.
CLASSES = {
    "background": [0],
    "solid": [1, 2, 3, 4],
    "thin": [5, 6],
}
IGNORED = [7, 8]
CHANGES = {
    "model.backbone": "experiments.own_backbone:ConvNet",
    "model.aspp_channels": 32,
    "model.decoder_channels": 32,
    "model.low_level_channels": 16,
    "model.decoder_convs": 1,
    "model.atrous_rates": (2, 4),
    "model.batch_norm_decay": 0.9,
    "data.crop_size": (97, 97),
    "eval.crop_size": (193, 193),
    "eval.batch_size": 10,
    "eval.panels": 0,
    "eval.trimap_widths": (),
    "train.batch_size": 8,
    "train.steps": 200,
    "train.eval_every": 0,
    "train.checkpoint_every": 0,
    "optim.learning_rate": 0.1,
    "loss.class_weights": "inverse_log",
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Embedded scenes as a folder."""
    root = tmp_path_factory.mktemp("scenes")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for split, count in (("train", TRAINED), ("val", EVALUATED)):
        names = [f"{split}_{i}" for i in range(count)]
        for example, name in zip(Synthetic(split), names):
            Image.fromarray(example["image"]).save(root / "images" / f"{name}.png")
            Image.fromarray(example["label"].astype(np.uint8)).save(root / "masks" / f"{name}.png")
        (root / f"{split}.txt").write_text("\n".join(names))
    classes = [{"name": name, "ids": ids} for name, ids in CLASSES.items()]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore": {"ids": IGNORED}}))
    return root


@pytest.mark.fault("D6")
def test_bfloat16_gives_the_labels_of_float32(scenes, tmp_path):
    def configured(**changes):
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        spec = f"{CONFIGS}/v3plus.py:mobilenet_v2,folder"
        return configuration.load(spec, CHANGES | {"data.root": str(scenes)} | changes)

    figures, labels = {}, {}
    for dtype, mode in (("float32", "train"), ("bfloat16", "eval")):
        config = configured(model__dtype=dtype)
        figures[dtype] = main.run(config, mode, tmp_path)
        source = pipeline.source(config.data, "val", config.model.num_classes)
        module, eval_module = networks.build(config)
        variables, _ = networks.trained(config, tmp_path, module, 3)
        labels[dtype] = np.concatenate(
            [
                predict.label_maps(
                    eval_module,
                    variables,
                    images,
                    normalization=config.data.normalization,
                    align_corners=config.model.align_corners,
                )
                for images, _ in pipeline.eval_batches(source, (193, 193), np.zeros(3), 10)
            ]
        )

    # It has learned: background alone would be a mean IoU of about 0.2.
    assert figures["float32"]["mean_iou"] > 0.5
    predicted = [share > 0.01 for share in figures["float32"]["predicted_share"].values()]
    assert sum(predicted) >= 3

    same = (labels["float32"] == labels["bfloat16"]).reshape(EVALUATED, -1).mean(axis=1)
    assert same.min() < 1  # they were two computations
    assert same.min() >= 0.985
    assert same.mean() >= 0.993
    assert abs(figures["float32"]["mean_iou"] - figures["bfloat16"]["mean_iou"]) <= 0.005
