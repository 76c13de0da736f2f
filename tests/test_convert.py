"""Foreign files through the command line: imported, exported, evaluated, fine-tuned, refused."""

import json
import struct

import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import CONFIGS
from test_golden_models import seeded
from test_main import run
from test_tf_bundle import entry, write_index

from deeplab_jax import checkpoint, importers, main, models
from deeplab_jax import config as configuration
from deeplab_jax.errors import ConfigError, ResourceError, WeightsError
from deeplab_jax.train import init_variables

NAME = "tf_Ddm05_mobilenetv2_dm05_os16_129"
ZOO = f"{CONFIGS}/zoo.py"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A TensorFlow training checkpoint's variables, optimizer's slots and all, as safetensors."""
    weights, _ = seeded(NAME)
    slots = {f"{k}/Momentum": np.zeros_like(v) for k, v in weights.items() if "moving" not in k}
    path = tmp_path_factory.mktemp("foreign") / "model.safetensors"
    safetensors.numpy.save_file(weights | slots | {"global_step": np.array(30000)}, path)
    return path


@pytest.fixture(scope="module")
def imported(foreign, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    done = run("--mode=import", f"--input={foreign}", f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


def test_import_writes_a_checkpoint_a_file_its_description_and_a_report(imported, foreign):
    folder, said = imported
    weights, _ = seeded(NAME)
    for words in (
        "TensorFlow DeepLab, 272 arrays loaded",
        "skipped 164, the optimizer's slots",
        "skipped 1, the step counter: global_step",
        "backbone = 'mobilenet_v2'",
        "width_multiplier = 0.5",
        "697,013 parameters",
    ):
        assert words in said
    description = json.loads((folder / "config.json").read_text())
    assert description["model"]["width_multiplier"] == 0.5
    assert description["data"]["normalization"] == "zero_mean"
    card = (folder / "README.md").read_text()
    assert foreign.name in card
    assert "SHA-256" in card
    mapping = dict(line.split("\t") for line in (folder / "mapping.txt").read_text().splitlines())
    assert mapping["params/backbone/stem/kernel"] == "MobilenetV2/Conv/weights"
    assert len(mapping) == len(weights)
    assert checkpoint.latest_step(folder) == 0


def test_what_was_exported_loads_again_everywhere(imported, foreign):
    folder, _ = imported
    keywords = importers.infer(folder / "model.safetensors")
    assert keywords == importers.infer(foreign)
    assert importers.infer(folder, output_stride=8)["output_stride"] == 8
    module = models.build(**keywords)
    target = jax.eval_shape(lambda: init_variables(module, 0))
    ways = (
        importers.load(foreign, target),
        importers.load(folder / "model.safetensors", target),
        checkpoint.load_variables(folder, target)[0],
    )
    for other in ways[1:]:
        jax.tree.map(np.testing.assert_array_equal, ways[0], other)


def tiny(data_folder):
    """Overrides that train the imported model one step, so gently that it stays what it was."""
    return {
        "data.name": "folder",
        "data.root": str(data_folder),
        "data.train_split": "all",
        "data.crop_size": (41, 57),
        "eval.split": "all",
        "eval.crop_size": (41, 57),
        "train.batch_size": 2,
        "train.steps": 1,
        "optim.learning_rate": 1e-9,
    }


def test_an_imported_folder_is_evaluated_and_trained_from(imported, data_folder, tmp_path):
    folder, _ = imported
    config = configuration.load(f"{ZOO}:{folder}", tiny(data_folder))
    results = main.run(config, "eval", tmp_path / "eval")
    assert 0 <= results["mean_iou"] <= 1
    main.run(config, "train", tmp_path / "train")
    start, _ = checkpoint.read_variables(folder)
    trained, step = checkpoint.read_variables(tmp_path / "train")
    assert step == 1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), start["params"], trained["params"]
    )


def test_training_goes_on_in_the_folder_of_the_import(foreign, data_folder, tmp_path):
    main.run(None, "import", tmp_path, str(foreign))
    before, _ = checkpoint.read_variables(tmp_path)
    config = configuration.load(f"{ZOO}:{tmp_path}", tiny(data_folder))
    config.init_from = ""  # what lies in the workdir is enough
    main.run(config, "train", tmp_path)
    after, step = checkpoint.read_variables(tmp_path)
    assert step == 1
    np.testing.assert_allclose(
        after["params"]["logits"]["kernel"], before["params"]["logits"]["kernel"], atol=1e-4
    )


def test_a_tensorflow_checkpoint_is_imported_without_tensorflow(foreign, tmp_path):
    """A whole V2 bundle, variables and slots, as tf.train.Saver lays it out."""
    weights = safetensors.numpy.load_file(foreign)
    items, data = [], b""
    for name, array in sorted(weights.items()):
        content = array.tobytes()
        dtype = 1 if array.dtype == np.float32 else 9
        items.append((name.encode(), entry(dtype, array.shape, len(data), len(content))))
        data += content
    write_index(tmp_path / "model.ckpt-30000", items, data)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-30000"\n')
    keywords = importers.infer(foreign)
    target = jax.eval_shape(lambda: init_variables(models.build(**keywords), 0))
    theirs = importers.load(foreign, target)
    for path in (tmp_path, tmp_path / "model.ckpt-30000", tmp_path / "model.ckpt-30000.index"):
        assert importers.infer(path) == keywords
        jax.tree.map(np.testing.assert_array_equal, theirs, importers.load(path, target))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pytorch_training_checkpoint_is_imported(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    weights, _ = seeded("torch_vainf_v3plus_mobilenet_os16_64x96")
    state = {f"module.{key}": torch.from_numpy(value) for key, value in weights.items()}
    torch.save(
        {"cur_itrs": 3, "model_state": state, "best_score": np.float64(0.7)},
        tmp_path / "best.pth",
        _use_new_zipfile_serialization=zipped,
    )
    keywords = importers.infer(tmp_path / "best.pth")
    assert keywords == importers.infer(weights)
    target = jax.eval_shape(lambda: init_variables(models.build(**keywords), 0))
    jax.tree.map(
        np.testing.assert_array_equal,
        importers.load(tmp_path / "best.pth", target),
        importers.load(weights, target),
    )


def test_other_classes_restart_the_classifier_alone():
    weights, _ = seeded(NAME)
    keywords = importers.infer(weights) | {"num_classes": 5}
    start = jax.tree.map(np.asarray, init_variables(models.build(**keywords), 0))
    said = []
    loaded = importers.load(weights, start, log=said.append)
    np.testing.assert_array_equal(
        loaded["params"]["logits"]["kernel"], start["params"]["logits"]["kernel"]
    )
    np.testing.assert_array_equal(
        loaded["params"]["aspp"]["projection"]["kernel"], weights["concat_projection/weights"]
    )
    assert any("another number of classes: logits/semantic" in line for line in said)
    assert said[-1] == "left as initialised: 2 arrays of logits/bias, logits/kernel"
    # Anything else that differs is an error, other classes or not.
    other = models.build(**keywords | {"aspp_channels": 128})
    with pytest.raises(WeightsError, match="concat_projection/weights: shape"):
        importers.load(weights, jax.eval_shape(lambda: init_variables(other, 0)))


def test_another_depth_of_resnet_is_said():
    weights, _ = seeded("torch_tv_fcn_resnet50")
    shallow = {k: v for k, v in weights.items() if not k.startswith("backbone.layer3.5")}
    with pytest.raises(WeightsError, match="has 5 bottleneck units"):
        importers.infer(shallow)


def test_arrays_of_other_axes_are_listed_not_crashed_on():
    weights, _ = seeded(NAME)
    keywords = importers.infer(weights)
    target = jax.eval_shape(lambda: init_variables(models.build(**keywords), 0))
    weights["aspp0/weights"] = weights["aspp0/weights"][0, 0]
    weights["MobilenetV2/expanded_conv/depthwise/depthwise_weights"] = np.zeros((3, 3, 16))[None]
    weights["surprise/weights"] = weights.pop("concat_projection/weights")
    with pytest.raises(WeightsError) as error:
        importers.load(weights, target)
    for words in (
        "of the file:",
        "aspp0/weights: shape (160, 256), but params/aspp/conv1x1/kernel is (1, 1, 160, 256)",
        "depthwise/depthwise_weights: shape (1, 3, 3, 16), but",
        "surprise/weights: no rules match",
        "of the model, unfilled:",
        "params/aspp/projection/kernel",
    ):
        assert words in str(error.value)


def test_what_is_left_out_is_said_even_without_a_log(caplog):
    weights, _ = seeded(NAME)
    module = models.build(**importers.infer(weights) | {"num_classes": 5})
    importers.load(weights, init_variables(module, 0))
    assert "left as initialised: 2 arrays" in caplog.text


def _object_npz(path):
    class Evil:
        def __reduce__(self):
            return (open, (str(path.parent / "canary"), "w"))

    np.savez(path, x=np.array([Evil()], object))


def _huge_npz(path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        archive.writestr("MobilenetV2/Conv/weights.npy", content)


def _lying_safetensors(path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4]}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(4))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("evil.npz", _object_npz),
        ("huge.npz", _huge_npz),
        ("lying.safetensors", _lying_safetensors),
        ("text.npz", lambda path: path.write_text("not a zip")),
        ("unknown.npz", lambda path: np.savez(path, a=np.zeros(3))),
        ("missing.npz", lambda path: None),
        ("network.onnx", lambda path: path.write_bytes(b"?")),
    ],
)
def test_hostile_and_unknown_files_end_with_4_and_write_nothing(name, write, tmp_path):
    write(tmp_path / name)
    done = run("--mode=import", f"--input={tmp_path / name}", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 4, done.stderr
    assert name in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()
    assert not (tmp_path / "canary").exists()


def test_a_preset_of_a_broken_file_ends_with_4(tmp_path):
    (tmp_path / "broken.npz").write_text("not a zip")
    done = run(f"--config={ZOO}:{tmp_path / 'broken.npz'}", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr


def test_import_says_what_it_cannot_do(imported, foreign, tmp_path):
    folder, _ = imported
    with pytest.raises(ConfigError, match="--input"):
        main.run(None, "import", tmp_path)
    with pytest.raises(ConfigError, match=r"holds model\.safetensors, .* already"):
        main.run(None, "import", folder, str(foreign))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my own words")
    with pytest.raises(ConfigError, match=r"holds README\.md already"):
        main.run(None, "import", tmp_path / "mine", str(foreign))
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["README.md"]
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="is a file"):
        main.run(None, "import", tmp_path / "file", str(foreign))
    config = configuration.load(f"{ZOO}:{foreign}", {"model.num_classes": 5})
    with pytest.raises(WeightsError, match="another number of classes"):
        main.run(config, "import", tmp_path, str(foreign))
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model": []}, 4),
        ({"model": {"name": "v3"}}, 4),
        ({"data": {"normalization": "bogus"}}, 4),
        ({"model": {"name": "v3", "backbone": "mobilenet_v2", "num_classes": 3, "colour": 1}}, 4),
        ({"model": {"name": "v3", "backbone": "mobilenet_v9", "num_classes": 3}}, 4),
    ],
)
def test_untrue_headers_of_our_own_files_end_with_4(imported, change, code, tmp_path):
    folder, _ = imported
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    description = json.loads((folder / "config.json").read_text()) | change
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(arrays, path, {importers.HEADER: json.dumps(description)})
    done = run("--mode=import", f"--input={path}", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


def test_a_workdir_of_other_weights_is_not_taken_for_these(
    imported, foreign, data_folder, tmp_path
):
    folder, _ = imported
    config = configuration.load(f"{ZOO}:{foreign}", tiny(data_folder))
    config.init_from = str(tmp_path / "other.npz")
    with pytest.raises(ConfigError, match="holds a checkpoint that came from"):
        main.run(config, "eval", folder)


def test_count_prints_and_writes_any_configuration(tmp_path):
    done = run(
        f"--config={ZOO}:mobilenetv2_coco_voc_trainaug_ms",
        "--mode=count",
        f"--workdir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    assert "backbone/block16/project" in done.stdout + done.stderr
    written = json.loads((tmp_path / "count.json").read_text())
    assert written["parameters"] == 2_113_557
    # The model zoo's 152.59 billion: output stride 8, six scales, mirrored.
    assert written["evaluation"]["tf_space_to_batch"] == pytest.approx(152.59e9, rel=5e-3)


def test_every_published_model_builds_with_its_protocol():
    spec = configuration.load(f"{ZOO}:xception65_coco_voc_trainaug_ms")
    assert spec.model.output_stride == 8
    assert spec.eval.eval_scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert spec.eval.add_flipped_images
    import zoo

    for name in zoo.VARIANTS:
        config = configuration.load(f"{ZOO}:{name}")
        configuration.check(config)
        module = models.build(**config.model)
        jax.eval_shape(lambda module=module: init_variables(module, 0))
    with pytest.raises(ConfigError, match="no published model"):
        configuration.load(f"{ZOO}:resnet")
