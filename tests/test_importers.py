import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, SHARED
from PIL import Image

from deeplab_jax import importers, models
from deeplab_jax.data import image_files
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


def test_tensorflows_plain_classifier_is_v2_without_rates():
    def infer(kernel):
        statistics = {"resnet_v1_50/conv1/BatchNorm/moving_mean": np.zeros(64)}
        return importers.infer(statistics | {"logits/semantic/weights": np.zeros(kernel)})

    found = infer((1, 1, 2048, 21))
    assert (found["name"], found["atrous_rates"]) == ("v2", None)
    assert infer((3, 3, 2048, 21))["atrous_rates"] == (12,)
    with pytest.raises(WeightsError, match="its classifier is 5x5 right on the backbone"):
        infer((5, 5, 2048, 21))


# --- VGG-16 ------------------------------------------------------------------------------------

VGG_CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG_CONVS = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]


def vgg_weights(source):
    """(VGG-16 by the names of "torchvision", "slim" or "lpips"; kernels HWIO by our names).

    Small integers, for the 138 million parameters' sake; the biases count their filters.
    """
    rng = np.random.default_rng(0)
    ours = {
        name: rng.integers(-9, 9, (3, 3, inputs, outputs), np.int8)
        for name, inputs, outputs in zip(VGG_CONVS, (3, *VGG_CHANNELS), VGG_CHANNELS)
    }
    if source != "lpips":
        ours["fc6"] = rng.integers(-9, 9, (7, 7, 512, 4096), np.int8)
        ours["fc7"] = rng.integers(-9, 9, (1, 1, 4096, 4096), np.int8)
        ours["fc8"] = np.zeros((1, 1, 4096, 10), np.int8)
    weights = {}
    positions = iter((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
    for i, (name, kernel) in enumerate(ours.items()):
        bias = np.arange(kernel.shape[-1], dtype=np.int16)
        if source == "lpips":
            weights |= {f"Conv_{i}/kernel": kernel, f"Conv_{i}/bias": bias}
        elif source == "slim":
            scope = name if name.startswith("fc") else f"{name.split('_')[0]}/{name}"
            weights |= {f"vgg_16/{scope}/weights": kernel, f"vgg_16/{scope}/biases": bias}
        elif name.startswith("fc"):
            scope = f"classifier.{3 * (int(name[2]) - 6)}"
            flat = kernel.transpose(3, 2, 0, 1).reshape(kernel.shape[-1], -1)  # over C, H, W
            weights |= {f"{scope}.weight": flat, f"{scope}.bias": bias}
        else:
            scope = f"features.{next(positions)}"
            weights |= {f"{scope}.weight": kernel.transpose(3, 2, 0, 1), f"{scope}.bias": bias}
    if source == "slim":
        weights |= {"vgg_16/mean_rgb": np.zeros(3, np.float32), "global_step": np.array(0)}
    return weights, ours


def vgg_model(kernel=3, channels=16, name="v1"):
    keywords = {"output_stride": 8, "fc_kernel_size": kernel, "fc_channels": channels}
    return models.build(name, "vgg16", 4, **keywords)


def check_fully_connected(params, theirs, taps):
    """That fc6 and fc7 are `theirs` at the filters which their biases name."""
    kept6, kept7 = (np.asarray(params[name]["bias"]).astype(int) for name in ("fc6", "fc7"))
    for kept in (kept6, kept7):
        assert len(set(kept)) == len(kept)
    assert (kept6.size == 4096) == np.array_equal(kept6, kept7)
    fc6 = theirs["fc6"][..., kept6][list(taps)][:, list(taps)]
    np.testing.assert_array_equal(params["fc6"]["kernel"], fc6)
    fc7 = theirs["fc7"][:, :, kept6][..., kept7]
    np.testing.assert_array_equal(params["fc7"]["kernel"], fc7)


@pytest.mark.parametrize("source", ["torchvision", "slim"])
def test_fc6_and_fc7_are_thinned_to_the_model(source):
    weights, theirs = vgg_weights(source)
    for kernel, taps in ((3, (0, 3, 6)), (4, (0, 2, 4, 6))):
        said = []
        after = importers.load(weights, zeros(vgg_model(kernel)), log=said.append)["params"]
        for name in VGG_CONVS:
            np.testing.assert_array_equal(after["backbone"][name]["kernel"], theirs[name])
            assert after["backbone"][name]["bias"][-1] == theirs[name].shape[-1] - 1
        check_fully_connected(after, theirs, taps)
        assert said[-1] == "left as initialised: 2 arrays of logits/bias, logits/kernel"
        assert any("the ImageNet classifier" in line for line in said)
    large_fov = vgg_model(channels=1024)
    after = importers.load(weights, zeros(large_fov))["params"]
    check_fully_connected(after, theirs, (0, 3, 6))
    again = importers.load(weights, zeros(large_fov))["params"]
    jax.tree.map(np.testing.assert_array_equal, again, after)
    with pytest.raises(WeightsError, match=r"but params/fc6/kernel is \(3, 3, 512, 4097\)"):
        importers.load(weights, target(vgg_model(channels=4097)))


@pytest.mark.slow
def test_the_papers_first_network_takes_fc6_and_fc7_whole():
    weights, theirs = vgg_weights("torchvision")
    after = importers.load(weights, target(vgg_model(7, 4096)))["params"]
    check_fully_connected(after, theirs, range(7))
    np.testing.assert_array_equal(after["fc6"]["bias"], np.arange(4096))


def test_every_branch_gets_fc6_and_fc7_and_other_models_do_without():
    weights, theirs = vgg_weights("torchvision")
    after = importers.load(weights, zeros(vgg_model(name="v2")))["params"]
    for i in (1, 2, 3, 4):
        check_fully_connected(after[f"branch{i}"], theirs, (0, 3, 6))
    said = []
    importers.load(weights, zeros(models.build("v3plus", "vgg16", 4)), log=said.append)
    assert any(line.startswith("skipped 4, fully connected layers") for line in said)
    weights["classifier.0.weight"] = weights["classifier.0.weight"][:, :-1]
    with pytest.raises(WeightsError, match=r"classifier.0.weight: shape \(4096, 25087\), but"):
        importers.load(weights, zeros(vgg_model()))


@pytest.mark.parametrize("end", ["npz", "pth"])
@pytest.mark.parametrize("source", ["torchvision", "slim", "lpips"])
def test_vgg_files_are_identified_and_loaded(source, end, tmp_path):
    weights, theirs = vgg_weights(source)
    path = tmp_path / f"vgg16.{end}"
    if end == "npz":
        np.savez(path, **weights)
    else:
        torch = pytest.importorskip("torch")
        torch.save({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in weights.items()}, path)
    found = importers.identify(path)
    assert found.trunk
    assert found.normalization == ("imagenet_mean" if source == "slim" else "imagenet")
    after = importers.load(path, zeros(models.build(**found.model, num_classes=4, fc_channels=16)))
    params = after["params"]
    np.testing.assert_array_equal(params["backbone"]["conv5_3"]["kernel"], theirs["conv5_3"])
    if source == "lpips":
        assert not params["fc6"]["kernel"].any()
    else:
        check_fully_connected(params, theirs, (0, 3, 6))
    path.unlink()


@needs_shared
def test_real_vgg_convolutions_load():
    path = WEIGHTS / "vgg16_imagenet_convs_float16.npz"
    after = importers.load(path, zeros(vgg_model()))["params"]
    with np.load(path) as file:
        kernel = file["Conv_0/kernel"]
    np.testing.assert_array_equal(after["backbone"]["conv1_1"]["kernel"], kernel)
    assert all(leaf.any() for leaf in jax.tree.leaves(after["backbone"]))
    assert not after["fc6"]["kernel"].any()


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
        image = image_files.read_image(
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
