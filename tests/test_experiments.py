"""The runner of the papers' tables: what it plans, shares, resumes and concludes."""

import json
import subprocess
import sys
from concurrent.futures import Future
from types import SimpleNamespace

import miniatures
import numpy as np
import pytest
from conftest import ROOT, write_folder
from PIL import Image

from deeplab_jax import evaluate, metrics
from deeplab_jax.data import synthetic
from deeplab_jax.data.labels import labels
from deeplab_jax.errors import ConfigError
from deeplab_jax.evaluate import Evaluation
from deeplab_jax.tally import Tally
from experiments import by_size, plan, plots, results, sweep, work
from experiments import run as run_module
from experiments.bootstrap import BANDS, WHOLE, Contrast, Measure, compare
from experiments.rows import COCO, Row, rows

V3 = "v3.py:mobilenet_v2"


def job(**overrides):
    """Of v3 on the embedded scenes; a__b is a.b."""
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    (found,), _ = plan.jobs([Row("a table", "a row", "", V3, dataset="synthetic")], "", given)
    return found


def counts(seed, images=12, classes=3):
    """Of one evaluation: {"whole", "trimap_2"}, the right class likelier."""
    rng = np.random.default_rng(seed)
    whole = rng.integers(0, 50, (images, classes, classes)) + 60 * np.eye(classes, dtype=int)
    return {"whole": whole.astype(np.int32), "trimap_2": (whole // 3).astype(np.int32)}


# -- what is shared --


def test_rows_that_only_evaluate_differently_share_a_training():
    jobs, left_out = plan.jobs(plan.table("v3plus_table3").ROWS, "", {})
    arms = [[j.row.label for j in group] for group in plan.arms(jobs).values()]
    assert [len(group) for group in arms] == [4, 6, 1, 3]
    assert arms[0] == ["OS 16", "eval OS 8", "eval OS 8, MS", "eval OS 8, MS, flip"]
    assert len({(j.arm, j.evaluation) for j in jobs}) == len(jobs)
    assert not left_out


def test_the_contrasts_take_five_trainings_and_a_sweep_shares_them():
    table = plan.table("contrasts")
    jobs, _ = plan.jobs(table.ROWS, "", {})
    arms = plan.arms(jobs)
    assert len(jobs) == 8
    assert len(arms) == 5
    names = {j.row.label for j in jobs}
    assert {name for c in table.CONTRASTS for name in (c.better, c.worse)} <= names
    spec = f"{ROOT}/configs/v3plus.py"
    swept, _ = plan.jobs(sweep.rows(spec, [("model.output_stride", [16, 32])]), "", {})
    assert swept[0].arm == jobs[0].arm
    assert swept[1].arm not in arms


@pytest.mark.parametrize(
    "change",
    [
        {"eval__eval_scales": (0.5, 1.0)},
        {"eval__crf": True},
        {"eval__model__output_stride": 8},
        {"eval__split": "train"},
    ],
)
def test_an_evaluation_keeps_the_arm(change):
    assert job(**change).arm == job().arm
    assert job(**change).evaluation != job().evaluation


@pytest.mark.parametrize(
    "change",
    [
        {"data__root": "/elsewhere"},
        {"data__num_threads": 1},
        {"log_every": 7},
        {"predict__crf": True},
        {"eval__panels": 1},
        {"crf__w1": 5.0},  # without eval.crf
        {"model__aspp_channels": 128},  # as it is
    ],
)
def test_what_matters_to_neither_keeps_both_names(change):
    assert (job(**change).arm, job(**change).evaluation) == (job().arm, job().evaluation)


@pytest.mark.parametrize(
    "change", [{"optim__learning_rate": 0.1}, {"model__dropout": 0.2}, {"init_from": "a.npz"}]
)
def test_what_training_depends_on_makes_another_arm(change):
    assert job(**change).arm != job().arm


def test_the_crf_is_told_apart_by_its_widths():
    assert job(eval__crf=True).evaluation != job(eval__crf=True, crf__w1=5.0).evaluation


def test_a_row_starts_from_the_arm_of_another(tmp_path):
    (coarse, finer, _), left_out = plan.jobs(plan.table("fcn_table2").ROWS, "", {})
    assert finer.start is coarse
    train, evaluation = (finer.command(mode, tmp_path, 1) for mode in ("train", "eval"))
    assert f"--config.init_from={coarse.workdir(tmp_path, 1)}" in train
    assert "--config.init_from=" in evaluation
    assert plan.chosen([coarse, finer], "16s, init") == [coarse, finer]
    assert plan.chosen([coarse, finer], "no such row") == []
    alone = plan.Job(finer.row, finer.spec, finer.overrides)
    assert alone.arm != finer.arm
    assert list(left_out.values()) == ["needs test server"]


def test_nothing_starts_from_a_training_that_failed(tmp_path):
    (_, finer, _), _ = plan.jobs(plan.table("fcn_table2").ROWS, "", {})
    failed = Future()
    failed.set_result([work.Failed("no memory")])
    (error,) = work.Worker(tmp_path)._arm([finer], 0, failed)
    assert "it starts from FCN-32s, which has failed" in str(error)
    assert not finer.workdir(tmp_path, 0).exists()


def test_a_run_on_coco_may_be_given():
    row = rows("a table", ("COCO", 80, V3, {}, COCO), dataset="synthetic")
    assert plan.jobs(row, "", {})[1] == {"COCO": f"needs {COCO}"}
    assert len(plan.jobs(row, "", {"init_from": "coco.npz"})[0]) == 1


def test_a_default_that_changed_since_is_told(tmp_path):
    trained = job()
    path = trained.workdir(tmp_path, 0) / "config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"optim": {"momentum": 0.9}, "model": {"gone": 1}}))
    work.check_same(trained, tmp_path, 0)
    path.write_text(json.dumps({"data": {"root": "elsewhere"}}))
    with pytest.raises(ConfigError, match=r"was trained on data\.root=elsewhere"):
        work.check_same(trained, tmp_path, 0)
    path.write_text(json.dumps({"optim": {"momentum": 0.8}}))
    with pytest.raises(ConfigError, match=r"optim\.momentum=0\.8, now the default is 0\.9"):
        work.check_same(trained, tmp_path, 0)


def test_rows_that_are_not_there_are_told(tmp_path, capsys):
    assert run_module.main(["contrasts", "--rows=typo", f"--out={tmp_path}"]) == 2
    assert "--rows=typo: no row has this in it" in capsys.readouterr().out
    assert run_module.main(["fcn_appendix_a", "--list", f"--out={tmp_path}"]) == 2
    assert not any(tmp_path.iterdir())


def test_only_one_process_works_in_a_folder(tmp_path):
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); "
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )

    def takes_it():
        asked = [sys.executable, "-c", code, str(tmp_path / "arm" / ".lock")]
        return subprocess.run(asked, capture_output=True).returncode == 0

    with work.locked(tmp_path / "arm"):
        assert not takes_it()
    assert takes_it()


# -- scales --


def test_the_embedded_scale_keeps_the_rows_structure():
    jobs, left_out = plan.jobs(plan.table("v2_table1").ROWS[::2], "embedded", {})
    shown = [
        (j.config["model.fc_kernel_size"], j.config["model.atrous_rates"], j.config["train.steps"])
        for j in jobs
    ]
    assert shown == [(7, (1,), 1000), (4, (1,), 1000), (4, (3,), 1000), (3, (4,), 1000)]
    assert not left_out


def test_the_embedded_scale_keeps_the_recipes_proportions():
    jobs, _ = plan.jobs(plan.table("v2_table2").ROWS, "embedded", {})
    keys = ("train.steps", "train.batch_size", "optim.schedule", "optim.learning_rate_decay_step")
    found = [tuple(j.config[key] for key in keys) for j in jobs]
    assert found[0] == (300, 24, "step", 100)
    assert [row[:2] for row in found[1:]] == [(300, 24), (500, 24), (500, 8), (1000, 8)]
    assert all(j.config["model.backbone"] == "mobilenet_v2" for j in jobs)


@pytest.mark.parametrize(
    ("table", "reason"),
    [("v3_table4", "multi_grid"), ("fcn_table2", "skips"), ("v3plus_table4", "comparison")],
)
def test_rows_without_an_embedded_form_are_left_out_with_the_reason(table, reason):
    jobs, left_out = plan.jobs(plan.table(table).ROWS[:1], "embedded", {})
    assert not jobs
    assert reason in next(iter(left_out.values()))


def test_another_dataset_is_named_by_the_scale():
    (found, *_), _ = plan.jobs(plan.table("v3plus_table7").ROWS[:1], "camvid", {})
    assert found.config["data.name"] == "camvid"
    assert found.config["model.backbone"] == "xception_65"


def test_a_wrong_override_is_an_error_not_a_reason():
    with pytest.raises(ConfigError, match="did you mean"):
        job(train__stepz=3)


# -- sweeps --


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.output_stride=8,16", ("model.output_stride", [8, 16])),
        ("model.atrous_rates=(6,12),(4,)", ("model.atrous_rates", [(6, 12), (4,)])),
        ("model.atrous_rates=auto, None", ("model.atrous_rates", ["auto", None])),
        ("eval.eval_scales=(0.5, 1.0)", ("eval.eval_scales", [(0.5, 1.0)])),
    ],
)
def test_an_axis_is_read(text, expected):
    assert sweep.axis(text) == expected


@pytest.mark.parametrize("text", ["model.output_stride", "a=", "=8", "a=8,8", "a=(1,2", "a=1,,2"])
def test_an_axis_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="--sweep"):
        sweep.axis(text)


def test_a_grid_leaves_out_what_does_not_build():
    axes = [("model.output_stride", [4, 16]), ("eval.add_flipped_images", [False, True])]
    jobs, left_out = plan.jobs(sweep.rows(f"{ROOT}/configs/v3plus.py", axes), "", {})
    assert [j.row.label for j in jobs] == [
        "output_stride 16, add_flipped_images False",
        "output_stride 16, add_flipped_images True",
    ]
    assert len(plan.arms(jobs)) == 1
    assert all("output_stride 4 is not one of" in why for why in left_out.values())
    assert len(left_out) == 2


# -- figures --


def test_each_images_counts_add_up_and_are_written(tmp_path):
    rng = np.random.default_rng(0)
    tally = Tally(3, 255, (1, 5), each_image=True)
    for _ in range(4):
        truth = np.kron(rng.integers(0, 3, (4, 5)), np.ones((8, 8), int))
        tally.add(truth, np.where(rng.random(truth.shape) < 0.7, truth, 0))
    known = labels(["background", "road", "car"])
    found = Evaluation(tally.results(known.names), tally, {}, [])
    evaluate.write(tmp_path, found, known, {})
    with np.load(tmp_path / "counts.npz") as file:
        assert sorted(file) == ["trimap_1", "trimap_5", "whole"]
        assert file["whole"].shape == (4, 3, 3)
        np.testing.assert_array_equal(file["whole"].sum(axis=0), tally.total)
        np.testing.assert_array_equal(file["trimap_5"].sum(axis=0), tally.bands[5])
        assert file["whole"].dtype == np.int32


def test_the_bootstrap_is_the_direct_one():
    better, worse = [counts(1), counts(2)], [counts(3), counts(4)]
    found = compare(Measure("", width=2), better, worse, draws=50)

    def mean_iou(of, drawn):
        return metrics.mean_iou(sum(of["trimap_2"][i].astype(np.int64) for i in drawn))

    def differences(drawn):
        return [mean_iou(a, drawn) - mean_iou(b, drawn) for a, b in zip(better, worse)]

    plain = differences(range(12))
    np.testing.assert_allclose(found["differences"], plain, rtol=1e-12)
    assert found["mean"] == pytest.approx(np.mean(plain))
    assert found["spread"] == pytest.approx(np.std(plain, ddof=1))
    assert found["positive"] == sum(d > 0 for d in plain)
    times = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), 50)
    drawn = [np.mean(differences(np.repeat(np.arange(12), row))) for row in times]
    np.testing.assert_allclose(found["interval"], np.percentile(drawn, [2.5, 97.5]), rtol=1e-12)


def test_a_bootstrap_of_the_same_row_is_nothing():
    found = compare(WHOLE, [counts(1)], [counts(1)], draws=20)
    assert found["interval"] == [0, 0]
    assert np.isnan(found["spread"])


def test_a_measure_takes_another_off():
    gain = BANDS[1]._replace(minus=WHOLE)
    of = counts(1)
    once = np.ones((1, 12))
    assert gain.of(of, once) == pytest.approx(BANDS[1].of(of, once) - WHOLE.of(of, once))


def test_the_twins_are_told_apart_by_chance_or_for_sure():
    told_apart = plan.table("contrasts").told_apart
    confused = np.zeros((9, 9))
    assert np.isnan(told_apart(confused))
    confused[7:, 7:] = 10
    assert told_apart(confused) == 0.5
    assert told_apart(np.eye(9)) == 1


def test_solids_are_counted_by_their_size():
    scenes = [synthetic.scene(synthetic.VERSION, 0, "val", i) for i in range(12)]
    truth = {scene.image.tobytes(): scene.label for scene in scenes}
    perfect = SimpleNamespace(segment=lambda image: truth[image.tobytes()])
    assert by_size.found_by_size(perfect, scenes) == [1, 1, 1, 1]
    blind = SimpleNamespace(segment=lambda image: np.zeros(image.shape[:2], np.uint8))
    assert by_size.found_by_size(blind, scenes) == [0, 0, 0, 0]


def evaluated(job, out, seed, mean_iou, of):
    """The files of an evaluation and of its training."""
    folder = job.folder(out, seed)
    folder.mkdir(parents=True)
    result = {"mean_iou": mean_iou, "trimap_mean_iou": {"1": mean_iou / 2, "2": mean_iou}}
    (folder / "results.json").write_text(json.dumps(result))
    (folder / "run.json").write_text(json.dumps({"commit": "abc", "hardware": "2 cores"}))
    np.savez(folder / "counts.npz", **of)
    lines = [{"step": 50, "images_per_second": 8.0}, {"step": 60, "split": "val"}]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, lines[0] | {"step": 100}])
    (job.workdir(out, seed) / "metrics.jsonl").write_text(text)


@pytest.fixture
def pair():
    """Two rows, a third that cannot run, and a contrast of the first two."""
    table = rows(
        "a table",
        ("large", 70.5, V3, {"model.atrous_rates": (4,)}),
        ("small", 68.0, V3, {"model.atrous_rates": (1,)}),
        ("hidden", 80.0, V3, {}, "the sun"),
        dataset="synthetic",
    )
    return table, [Contrast("more is more", "large", "small", (WHOLE, BANDS[1]))]


def test_a_summary_has_rows_seeds_and_contrasts(tmp_path, pair):
    table, contrasts = pair
    jobs, left_out = plan.jobs(table, "", {})
    for seed in (0, 1):
        evaluated(jobs[0], tmp_path, seed, 0.6 + 0.1 * seed, counts(seed))
        evaluated(jobs[1], tmp_path, seed, 0.5, counts(10 + seed))
    found = results.summary(table, jobs, left_out, contrasts, (0, 1, 2), tmp_path)
    large, _, hidden = found["rows"]
    assert large["ours"] == pytest.approx(0.65)
    assert large["spread"] == pytest.approx(0.1 / 2**0.5)
    assert large["seeds"] == {"0": 0.6, "1": 0.7}
    assert large["training_seconds"] == pytest.approx(100.0)  # 100 steps of 8 at 8 a second
    assert hidden["left_out"] == "needs the sun"
    assert [c["measure"] for c in found["contrasts"]] == ["mean IoU", "mean IoU within 2 px"]
    assert found["contrasts"][0]["seeds"] == [0, 1]

    results.write(tmp_path / "table", found)
    assert json.loads((tmp_path / "table.json").read_text()) == found
    text = (tmp_path / "table.md").read_text()
    assert "| large | 70.5 | 65.00 ± 7.07 | 0, 1 | 1:40 |  |" in text
    assert "left out: needs the sun" in text
    assert "of 2" in text
    with Image.open(tmp_path / "table.png") as picture:
        assert picture.width > 800


def test_what_cannot_be_measured_is_no_point_of_a_curve(tmp_path, pair):
    table, _ = pair
    jobs, left_out = plan.jobs(table, "", {})
    evaluated(jobs[0], tmp_path, 0, 0.6, counts(0))
    file = jobs[0].folder(tmp_path, 0) / "results.json"
    file.write_text(json.dumps({"mean_iou": 0.0, "trimap_mean_iou": {"1": None, "2": 0.0}}))
    found = results.summary(table, jobs, left_out, [], (0,), tmp_path)
    assert found["rows"][0]["ours"] == 0
    assert found["rows"][0]["trimap_mean_iou"] == {"1": None, "2": 0.0}
    results.write(tmp_path / "table", found)
    assert (tmp_path / "table.png").exists()


def test_a_summary_of_nothing_is_a_table_too(tmp_path, pair):
    table, contrasts = pair
    jobs, left_out = plan.jobs(table, "", {})
    found = results.summary(table, jobs, left_out, contrasts, (0,), tmp_path)
    results.write(tmp_path / "table", found)
    assert "| large | 70.5 |  |  |  |  |" in (tmp_path / "table.md").read_text()
    assert found["contrasts"] == []


def test_appendix_a_is_measured_without_a_network(tmp_path):
    miniatures.voc(tmp_path / "voc")
    table = plan.table("fcn_appendix_a")
    found = results.measured(table.ROWS, table.measured({"data.root": str(tmp_path / "voc")}))
    results.write(tmp_path / "appendix", found)
    lines = (tmp_path / "appendix.md").read_text().splitlines()
    assert sum("| factor" in line for line in lines) == 18
    assert all(0 < row["ours"] <= 1 for row in found["rows"])


def test_plots_take_one_value_and_equal_ones():
    assert plots.bars(["a"], [[50.0]], [None]).height > 40
    flat = plots.curves({"a": [(1, 50.0)], "b": [(1, 50.0)]}, "x", "y", logarithmic=True)
    assert flat.width > 500


# -- all of it --


TINY = [
    f"--config={ROOT}/configs/v3.py:mobilenet_v2,folder",
    "--set=model.backbone=experiments.own_backbone:ConvNet",
    "--set=model.num_classes=3",
    "--set=model.atrous_rates=(1, 2)",
    "--set=model.aspp_channels=8",
    "--set=data.crop_size=(33, 33)",
    "--set=data.train_split=all",
    "--set=eval.split=all",
    "--set=train.steps=2",
    "--set=train.batch_size=2",
]


def run(*words):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.run", *words], cwd=ROOT, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_sweep_trains_once_evaluates_each_and_goes_on(tmp_path):
    root = write_folder(tmp_path / "data")
    out = tmp_path / "results"
    words = [*TINY, "--sweep=eval.add_flipped_images=False,True", f"--set=data.root={root}"]
    words.append(f"--out={out}")
    assert "0 of 1 seeds trained" in run(*words, "--list")[1]
    code, said = run(*words)
    assert code == 0, said
    assert "train v3-" in said
    assert said.count("compiling the train step") == 1
    assert len(list(out.glob("arms/*/seed0/evaluations/*/counts.npz"))) == 2
    found = json.loads((out / "sweep.json").read_text())["rows"]
    assert all(row["ours"] is not None for row in found)
    assert found[1]["multiply_adds"] == 2 * found[0]["multiply_adds"]
    assert (out / "sweep.png").exists()

    newest = next(iter(out.glob("arms/*/seed0/evaluations")))
    evaluation = sorted(newest.iterdir())[0]
    for path in evaluation.iterdir():
        path.unlink()
    evaluation.rmdir()
    code, said = run(*words)  # as if it had been stopped before that evaluation
    assert code == 0, said
    assert said.count("eval v3-") == 1
    assert "train v3-" not in said


@pytest.mark.slow
def test_a_row_that_fails_says_why_and_the_others_go_on(tmp_path):
    root = write_folder(tmp_path / "data")
    words = [*TINY, "--sweep=init_from=no/a.npz,no/b.npz", f"--set=data.root={root}"]
    code, said = run(*words, f"--out={tmp_path}/results", "--jobs=2")
    assert code == 1
    assert all(name in said for name in ("no/a.npz", "no/b.npz"))
    assert (tmp_path / "results" / "sweep.md").exists()
    assert "Traceback" not in said
