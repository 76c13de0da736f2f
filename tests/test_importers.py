import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, SHARED
from PIL import Image

from deeplab_jax import importers, models
from deeplab_jax.data import files
from deeplab_jax.errors import WeightsError
from deeplab_jax.predict import predict

WEIGHTS = SHARED / "weights"
needs_shared = pytest.mark.skipif(
    not WEIGHTS.is_dir(), reason="needs the weights beside the project"
)

PASCAL = models.build("v3", "mobilenet_v2", 21, output_stride=8, atrous_rates=None)


def target(module):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 33, 33, 3))))


def zeros(module):
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), target(module))


def trunk_weights(seed=0):
    """A PyTorch MobileNetV2 state dict with the true names and shapes, random values."""
    rng = np.random.default_rng(seed)
    weights, channels = {}, 32

    def conv(name, norm, shape):
        weights[f"{name}.weight"] = rng.standard_normal(shape).astype(np.float32)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{norm}.{leaf}"] = rng.random(shape[0]).astype(np.float32)
        weights[f"{norm}.num_batches_tracked"] = np.zeros((), np.int64)

    conv("features.0.0", "features.0.1", (32, 3, 3, 3))
    settings = [
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    ]
    blocks = [(t, c) for t, c, n in settings for _ in range(n)]
    for i, (expansion, features) in enumerate(blocks, start=1):
        wide, at = channels * expansion, f"features.{i}.conv"
        k = 0
        if expansion > 1:
            conv(f"{at}.0", f"{at}.1", (wide, channels, 1, 1))
            k = 3
        conv(f"{at}.{k}", f"{at}.{k + 1}", (wide, 1, 3, 3))
        conv(f"{at}.{k + 3}", f"{at}.{k + 4}", (features, wide, 1, 1))
        channels = features
    conv("features.18.0", "features.18.1", (1280, 320, 1, 1))
    weights["classifier.1.weight"] = np.zeros((1000, 1280), np.float32)
    return weights


def test_a_trunk_fills_the_backbone_and_leaves_the_head():
    module = models.build("v3plus", "mobilenet_v2", 5)
    weights, before, said = trunk_weights(), zeros(module), []
    after = importers.load(weights, before, log=said.append)
    backbone = after["params"]["backbone"]
    np.testing.assert_array_equal(
        backbone["stem"]["kernel"], weights["features.0.0.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        backbone["block16"]["depthwise"]["depthwise_kernel"],
        weights["features.17.conv.3.weight"][:, 0].transpose(1, 2, 0),
    )
    np.testing.assert_array_equal(
        after["batch_stats"]["backbone"]["block0"]["project"]["norm"]["var"],
        weights["features.1.conv.4.running_var"],
    )
    assert not after["params"]["logits"]["kernel"].any()
    assert all(leaf.any() for leaf in jax.tree.leaves(backbone))
    assert "left as initialised" in said[-1]
    assert "aspp/atrous1" in said[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("features.5.conv.0.weight"), "params/backbone/block4/expand/kernel"),
        (lambda w: w.update(surprise=np.zeros(1)), "surprise: no rules match"),
        (
            lambda w: w.update({"features.0.0.weight": np.zeros((16, 3, 3, 3), np.float32)}),
            r"shape \(16, 3, 3, 3\), but params/backbone/stem/kernel is \(3, 3, 3, 32\)",
        ),
        (lambda w: w.pop("features.0.0.weight"), "belong to no layout"),
    ],
)
def test_what_does_not_fit_is_listed(change, message):
    weights = trunk_weights()
    change(weights)
    with pytest.raises(WeightsError, match=message):
        importers.load(weights, zeros(models.build("v3plus", "mobilenet_v2", 5)))


def test_hostile_and_broken_files_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    np.savez(tmp_path / "evil.npz", x=np.array([Evil()], object))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    np.savez_compressed(tmp_path / "flipped.npz", x=np.arange(3000))
    content = bytearray((tmp_path / "flipped.npz").read_bytes())
    content[200:230] = bytes(30)
    (tmp_path / "flipped.npz").write_bytes(content)
    for name in ("evil.npz", "flipped.npz", "broken.npz", "missing.npz", "weights.pth"):
        if name == "weights.pth":
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(WeightsError, match=name):
            importers.load(tmp_path / name, zeros(PASCAL))
    assert not (tmp_path / "canary").exists()


@needs_shared
def test_real_imagenet_trunk_loads():
    module = models.build("v3plus", "mobilenet_v2", 21)
    before = zeros(module)
    after = importers.load(WEIGHTS / "mobilenetv2_imagenet_nohead_float32.npz", before)
    assert all(leaf.any() for leaf in jax.tree.leaves(after["params"]["backbone"]))


@needs_shared
@pytest.mark.slow
def test_official_pascal_model_gives_the_official_labels():
    variables = importers.load(
        WEIGHTS / "deeplabv3_mnv2_pascal_trainval_float32.npz", target(PASCAL)
    )
    equal = total = 0
    for path in sorted((GOLDEN / "mnv2_voc").glob("*.png")):
        image = files.read_image(
            SHARED / "data" / "voc2012_subset" / "JPEGImages" / f"{path.stem}.jpg"
        )
        ours = predict(PASCAL, variables, image, crop_size=(513, 513))
        with Image.open(path) as reference:
            theirs = np.asarray(reference)
        equal += (ours == theirs).sum()
        total += theirs.size
    assert total > 12 * 300 * 300
    assert equal / total >= 0.999
    assert json.loads((GOLDEN / "mnv2_voc" / "reference.json").read_text())["n"] == 223
