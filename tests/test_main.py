"""The command line as a user meets it: real processes, exit codes, files on disk."""

import gzip
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import CHILD_ENVIRONMENT, CONFIGS
from PIL import Image
from test_train import SMALL, small

import deeplab_jax
from deeplab_jax import advice, main
from deeplab_jax import config as configuration
from deeplab_jax.data import image_files, labels
from deeplab_jax.errors import ConfigError, DataError, WeightsError

V3PLUS = f"--config={CONFIGS}/v3plus.py"


def run(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "deeplab_jax.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=CHILD_ENVIRONMENT | {"COLUMNS": "100"},
    )


def size(path):
    with Image.open(path) as picture:
        return picture.size


def test_a_config_file_works_from_anywhere(tmp_path):
    done = run(V3PLUS, f"--workdir={tmp_path}", "--mode=eval", cwd=tmp_path)
    assert done.returncode == 4
    assert "no checkpoint here; train first" in done.stderr


def test_train_then_eval_then_predict_then_resume(data_folder, tmp_path, capsys):
    workdir = tmp_path / "run"
    for path in (data_folder / "masks").iterdir():  # ids 0, 10, 20 and 255
        with Image.open(path) as mask:
            ids = np.asarray(mask)
        Image.fromarray(np.where(ids == 255, ids, ids * 10)).save(path)
    classes = [{"name": f"ten_{i}", "ids": [10 * i]} for i in range(3)]
    (data_folder / "classes.json").write_text(json.dumps({"classes": classes}))
    short = {"train__steps": 6, "model__batch_norm_decay": 0.99}
    trained = main.run(small(data_folder, **short, train__eval_every=3), "train", workdir)
    assert "after 6 steps the running statistics of batch norm still hold 94 %" in (
        capsys.readouterr().out
    )
    for name in ("config.json", "metrics.jsonl", "eval/results.json", "eval/report.html"):
        assert (workdir / name).stat().st_size > 0
    for name in ("confusion.png", "panel.png", "legend.png"):
        assert size(workdir / "eval" / name)[0] > 50
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 5, 6, 6]
    assert {"loss", "learning_rate", "images_per_second"} <= lines[1].keys()
    assert {"split", "mean_iou", "pixel_accuracy", "iou"} <= lines[-1].keys()
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 6

    evaluated = main.run(small(data_folder, **short), "eval", workdir)
    np.testing.assert_equal(evaluated, trained)
    renamed = json.dumps({"classes": classes}).replace("ten_1", "eleven")
    (data_folder / "classes.json").write_text(renamed)
    denser = small(data_folder, eval__model__output_stride=8)
    assert main.run(denser, "eval", workdir)["mean_iou"] >= 0
    assert "warning: trained with the classes ('ten_0', 'ten_1'" in capsys.readouterr().out

    photos = shutil.copytree(data_folder / "images", tmp_path / "photos")
    Image.new("RGB", (50, 40)).save(photos / "scene 1.png")
    nowhere = small(tmp_path / "nowhere")  # the checkpoint knows its classes without the data
    main.run(nowhere, "predict", workdir, str(photos))
    written = sorted(p.name for p in (workdir / "predictions" / "labels").iterdir())
    assert written == sorted([*(f"scene {i}.png" for i in range(4)), "scene 1_2.png"])
    with Image.open(workdir / "predictions" / "labels" / "scene 2.png") as index:
        assert (index.mode, index.size) == ("P", (50, 40))
        assert np.asarray(index).max() < 3
        assert index.getpalette()[:6] == labels.voc_palette()[:2].ravel().tolist()
    assert size(workdir / "predictions" / "overlays" / "scene 2.png") == (50, 40)
    named = json.loads((workdir / "predictions" / "labels.json").read_text())["classes"]
    assert [c["name"] for c in named] == ["ten_0", "ten_1", "ten_2"]
    network = deeplab_jax.load(workdir)
    assert network.classes == ("ten_0", "ten_1", "ten_2")
    answer = network.segment(photos / "scene 2.jpg")
    np.testing.assert_array_equal(
        answer, image_files.read_mask(workdir / "predictions" / "labels" / "scene 2.png")
    )
    with Image.open(photos / "scene 2.jpg") as photo:
        np.testing.assert_array_equal(network.segment(photo), answer)
    raw = small(tmp_path / "nowhere", predict__raw_ids=True, model__num_classes=None)
    main.run(raw, "predict", workdir, str(photos / "scene 2.jpg"), tmp_path / "raw")
    with Image.open(workdir / "predictions" / "labels" / "scene 2.png") as index:
        expected = 10 * np.asarray(index)
    np.testing.assert_array_equal(
        image_files.read_mask(tmp_path / "raw" / "labels" / "scene 2.png"), expected
    )

    (data_folder / "images" / "scene 1.jpg").write_bytes(b"nothing")
    tuning = small(data_folder, train__steps=1, init_from=str(workdir), data__on_error="skip")
    fine_tuned = main.run(tuning, "train", tmp_path / "next")
    assert fine_tuned["mean_iou"] >= 0
    assert fine_tuned["left_out"] == 1
    assert "1 of 4 images could not be read and are left out" in capsys.readouterr().out


def trace_events(folder):
    (file,) = folder.rglob("perfetto_trace.json.gz")
    with gzip.open(file, "rt") as trace:
        return json.load(trace)["traceEvents"]


def test_profiles_can_be_opened(data_folder, tmp_path, capsys):
    workdir = tmp_path / "run"
    main.run(small(data_folder, train__steps=12), "train", workdir, profile=True)
    assert "ui.perfetto.dev" in capsys.readouterr().out
    # Five steps are traced, each a call of the jitted step.
    calls = [e for e in trace_events(workdir / "profile") if "jit_step" in e.get("name", "")]
    assert calls

    copy = shutil.copytree(workdir / "checkpoints", tmp_path / "other" / "checkpoints")
    main.run(small(data_folder), "eval", copy.parent, profile=True)
    assert trace_events(copy.parent / "profile")


def test_a_run_shorter_than_a_profile_still_ends_it(data_folder, tmp_path):
    main.run(small(data_folder, train__steps=5), "train", tmp_path / "run", profile=True)
    assert trace_events(tmp_path / "run" / "profile")


def test_check_data_reports_and_draws(data_folder, tmp_path, capsys):
    main.run(small(data_folder), "check_data", tmp_path)
    said = capsys.readouterr().out
    assert "all: 4 examples, 0 of them bad" in said
    assert "50x40 (4)" in said
    assert size(tmp_path / "check_data" / "all.png")[0] > 150


def test_predict_without_input_or_weights_says_what_is_missing(data_folder, tmp_path):
    with pytest.raises(ConfigError, match="--input"):
        main.run(small(data_folder), "predict", tmp_path)
    with pytest.raises(WeightsError, match="no checkpoint"):
        main.run(small(data_folder), "predict", tmp_path, str(data_folder / "images"))


def test_predictions_never_overwrite_their_inputs(data_folder, tmp_path):
    (data_folder / "labels").mkdir()
    Image.new("RGB", (9, 9)).save(data_folder / "labels" / "x.png")
    with pytest.raises(ConfigError, match="would overwrite the input"):
        main.run(small(data_folder), "predict", tmp_path, str(data_folder / "labels"), data_folder)


def test_check_data_gathers_what_is_wrong_in_every_split(data_folder, tmp_path):
    for split, bad in (("train", "scene 0"), ("val", "scene 3")):
        (data_folder / f"{split}.txt").write_text(f"{bad}\nscene 1\n")
        (data_folder / "images" / f"{bad}.jpg").write_bytes(b"nothing")
    config = small(data_folder, data__train_split="train", eval__split="val")
    with pytest.raises(DataError, match=r"(?s)scene 0\.jpg.*scene 3\.jpg"):
        main.run(config, "check_data", tmp_path)


def test_class_names_and_their_number_must_agree(data_folder, tmp_path):
    (data_folder / "classes.txt").write_bytes("\ufeffsky\nroad\ncar\n".encode())
    main.run(small(data_folder), "check_data", tmp_path)
    (data_folder / "classes.txt").write_text("sky\nroad\n")
    with pytest.raises(ConfigError, match="names 2 classes"):
        main.run(small(data_folder), "check_data", tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data__crop_size", (257,)),
        ("seed", -1),
        ("model__num_classes", 0),
        ("model__num_classes", 300),
        ("eval__class_subset", (0, 30)),
        ("data__min_scale_factor", 3.0),
        ("log_every", -1),
        ("train__batch_size", 0),
        ("train__ema_decay", 1.0),
        ("loss__label_smoothing", 1.0),
        ("loss__class_weights", (1.0, 2.0)),
        ("loss__class_weights", (1.0, 2.0, -1.0)),
        ("loss__class_weights", "frequency"),
        ("loss__top_k_percent_pixels", 0.0),
        ("loss__hard_example_mining_step", -1),
        ("optim__name", "adam"),
        ("optim__schedule", "polly"),
        ("optim__slow_start_burnin", "line"),
        ("optim__slow_start_step", 20),
        ("optim__learning_rate_decay_step", 0),
        ("optim__clip_norm", 0.0),
        ("data__bootstrap_classes", (3,)),
        ("data__bootstrap_copies", 0),
        ("data__num_threads", 0),
        ("data__num_workers", -1),
        ("data__augment_on", "gpu"),
        ("data__resize_factor", 16),
    ],
)
def test_values_that_would_fail_later_are_refused_at_once(data_folder, tmp_path, key, value):
    with pytest.raises(ConfigError, match=key.split("__")[-1]):
        main.run(small(data_folder, **{key: value}), "train", tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_help_shows_the_flags():
    done = run("--help")
    assert done.returncode == 0
    assert "--workdir" in done.stdout


def test_a_workdir_that_cannot_be_written_ends_with_6(data_folder, tmp_path):
    (tmp_path / "file").write_text("")
    done = run(
        f"{V3PLUS}:mobilenet_v2,folder",
        f"--workdir={tmp_path / 'file'}",
        "--mode=check_data",
        *[f"--config.{k}={v}" for k, v in (SMALL | {"data.root": data_folder}).items()],
    )
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("preset", "backbone", "data"),
    [
        ("", "mobilenet_v2", "synthetic"),
        ("voc", "xception_65", "voc"),
        ("mobilenet_v2,voc", "mobilenet_v2", "voc"),
        ("folder,xception_71", "xception_71", "folder"),
        ("xception_41", "xception_41", "synthetic"),
    ],
)
def test_presets_name_a_variant_and_a_dataset(preset, backbone, data):
    config = configuration.load(f"{CONFIGS}/v3plus.py:{preset}")
    assert (config.model.backbone, config.data.name) == (backbone, data)


@pytest.mark.parametrize(
    ("spec", "changes", "words"),
    [
        ("v3plus.py:xception_65,voc", {}, None),
        ("v3plus.py:xception_65,voc", {"data.crop_size": (257, 257)}, "atrous_rates='(3, 6, 9)'"),
        (
            "v3plus.py:xception_65,voc",
            {"data.crop_size": (257, 257), "model.atrous_rates": (3, 6, 9)},
            None,
        ),
        (
            "v3plus.py:xception_65,voc",
            {"data.crop_size": (257, 257), "eval.crop_size": (257, 257)},
            None,
        ),
        (
            "v3plus.py:xception_65_trainval,voc",
            {"data.crop_size": (257, 257)},
            "atrous_rates='(6, 12, 18)'",
        ),
        ("v2.py:vgg_aspp_l,voc", {"data.crop_size": (161, 161)}, "atrous_rates='(2, 4, 6, 8)'"),
        ("v3.py:cascade,voc", {"data.crop_size": (257, 257)}, None),
        ("v3plus.py:xception_65,voc", {"train.steps": 1000}, "model.batch_norm_decay=0.9"),
        ("v3plus.py:xception_65_trainval,voc", {"train.steps": 1000}, None),
        ("v1.py:largefov,voc", {"train.steps": 1000}, None),
        ("v3plus.py", {}, None),
    ],
)
def test_what_trains_and_disappoints_is_pointed_out(spec, changes, words):
    found = advice.before_training(configuration.load(f"{CONFIGS}/{spec}", changes))
    assert len(found) == (words is not None)
    assert all(words in sentence for sentence in found)
