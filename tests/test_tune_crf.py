"""The search over the CRF's parameters, and both of the product's uses of it."""

import itertools
import json

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_train import small

from deeplab_jax import config as configuration
from deeplab_jax import main, tune_crf
from deeplab_jax.errors import ConfigError, DataError

GRID = ((1.0, 2.0, 3.0, 4.0), (10.0, 20.0, 30.0, 40.0, 50.0), (1.0, 2.0, 3.0))


def height(point):
    """One hill, with its top off the coarse grid."""
    return -sum(abs(x - y) for x, y in zip(point, (4.0, 20.0, 2.0)))


def measuring(table, seen, stop_after=None):
    def measure(points):
        for point in points:
            if stop_after is not None and len(seen) == stop_after:
                raise KeyboardInterrupt
            seen.append(point)
            table.add(point, {"mean_iou": height(point)})

    return measure


def test_the_search_climbs_from_the_coarse_grid_to_the_top(tmp_path):
    seen = []
    table = tune_crf.Table(tmp_path / "t", {})
    best = tune_crf.search(GRID, measuring(table, seen), table)
    assert [best[axis] for axis in tune_crf.AXES] == [4.0, 20.0, 2.0]
    assert len(seen) == len(set(seen)) < 4 * 5 * 3
    coarse = set(itertools.product((1, 3), (10, 30, 50), (1, 3)))
    assert set(seen[:12]) == coarse


def test_a_search_that_stopped_goes_on(tmp_path):
    seen = []
    table = tune_crf.Table(tmp_path / "t", {"images": 3})
    with pytest.raises(KeyboardInterrupt):
        tune_crf.search(GRID, measuring(table, seen, stop_after=7), table)
    with (tmp_path / "t").open("a") as file:
        file.write('{"w1": 1.0, "sig')  # killed while it wrote
    table = tune_crf.Table(tmp_path / "t", {"images": 3})
    best = tune_crf.search(GRID, measuring(table, seen), table)
    assert best["mean_iou"] == 0
    assert len(seen) == len(set(seen))
    with pytest.raises(ConfigError, match="another --workdir"):
        tune_crf.Table(tmp_path / "t", {"images": 4})


def test_a_search_goes_on_in_another_grid_and_without_a_figure(tmp_path):
    table = tune_crf.Table(tmp_path / "t", {})
    table.add((1.0, 10.0, 1.0), {"mean_iou": float("nan")})
    with pytest.raises(DataError, match="no mean_iou"):
        table.best()
    tune_crf.search(GRID, measuring(table, []), table)
    table = tune_crf.Table(tmp_path / "t", {})
    further = ((5.0,), (20.0,), (2.0,))
    assert tune_crf.search(further, measuring(table, []), table)["w1"] == 4
    assert (5.0, 20.0, 2.0) in table.found
    (tmp_path / "torn").write_text('{"sett')
    assert not tune_crf.Table(tmp_path / "torn", {}).found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crf.method", "lattice"),
        ("crf.sigma_beta", 0.0),
        ("crf.iterations", 0),
        ("tune_crf.images", 0),
        ("tune_crf.w1", ()),
    ],
)
def test_settings_of_the_crf_that_cannot_be(key, value):
    config = configuration.load(f"{ROOT}/configs/v3plus.py", {key: value})
    with pytest.raises(ConfigError, match=key):
        configuration.check(config)


def test_the_crf_in_evaluation_prediction_and_tuning(data_folder, tmp_path, capsys):
    workdir = tmp_path / "run"
    changes = {"train__steps": 2, "crf__iterations": 2, "eval__class_subset": (0, 1)}
    main.run(small(data_folder, **changes), "train", workdir)
    plain = main.run(small(data_folder, **changes), "eval", workdir)
    results = main.run(small(data_folder, **changes, eval__crf=True), "eval", workdir)
    before = results["before_crf"]
    assert (before["mean_iou"], before["mean_iou_2"]) == (plain["mean_iou"], plain["mean_iou_2"])
    assert results["mean_iou"] != before["mean_iou"]
    assert ", before the CRF" in capsys.readouterr().out
    with Image.open(workdir / "eval" / "belief_maps.png") as beliefs:
        with Image.open(workdir / "eval" / "panel.png") as panel:
            assert beliefs.height == panel.height
    written = json.loads((workdir / "eval" / "results.json").read_text())
    assert written["before_crf"]["trimap_mean_iou"].keys() == {"3"}

    folders = [tmp_path / "plain", tmp_path / "crf"]
    for crf, folder in zip((False, True), folders):
        config = small(data_folder, **changes, predict__crf=crf)
        main.run(config, "predict", workdir, str(data_folder / "images"), folder)
    names = [f"labels/scene {i}.png" for i in range(4)]
    assert any((folders[0] / n).read_bytes() != (folders[1] / n).read_bytes() for n in names)

    grid = {"tune_crf__w1": (3.0, 4.0), "tune_crf__sigma_alpha": (20.0, 30.0)}
    grid |= {"tune_crf__sigma_beta": (3.0,), "tune_crf__images": 2}
    best = main.run(small(data_folder, **changes, **grid), "tune_crf", workdir)
    lines = (workdir / "tune_crf" / "table.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 4
    assert best["mean_iou_2"] == max(json.loads(line)["mean_iou_2"] for line in lines[1:])
    assert np.isfinite([json.loads(line)["mean_iou_2"] for line in lines[1:]]).all()
    out = capsys.readouterr().out
    assert "without the CRF  mean iou " in out
    assert "--config.crf.w1=" in out
    main.run(small(data_folder, **changes, **grid), "tune_crf", workdir)
    assert (workdir / "tune_crf" / "table.jsonl").read_text().splitlines() == lines
    with pytest.raises(ConfigError, match="another --workdir"):
        main.run(
            small(data_folder, **changes, **grid | {"tune_crf__images": 1}), "tune_crf", workdir
        )
