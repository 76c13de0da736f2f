"""Wrong usage: exit code 2, one sentence, no stack trace, and nothing written."""

import sys

import jax
import pytest
from absl.testing import flagsaver
from command import command, run
from conftest import CONFIGS
from test_train import small

from deeplab_jax import advice, main
from deeplab_jax import config as configuration
from deeplab_jax.errors import ConfigError
from deeplab_jax.models import BACKBONES, OUTPUT_STRIDES

V3PLUS = f"--config={CONFIGS}/v3plus.py"
# Of ml_collections, where a process would not show it.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture
def deeplab(monkeypatch, tmp_path, capsys):
    """The program: deeplab(arguments) is (exit code, stdout, stderr)."""

    def program(*arguments):
        monkeypatch.setattr(sys, "argv", ["deeplab", *map(str, arguments)])
        with flagsaver.flagsaver():  # overrides become flags
            code = main.main()
        return code, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    return program


@pytest.fixture
def refused(deeplab, tmp_path):
    """refused(arguments) is the one sentence that a run with them ends with."""

    def sentence(*arguments, workdir=f"--workdir={tmp_path / 'w'}"):
        code, said, told = deeplab(*arguments, *filter(None, [workdir]))
        assert code == 2, told
        assert not said
        assert told.startswith("error: ")
        assert told.count("\n") == 1
        assert not any(tmp_path.iterdir())
        return told

    return sentence


# --- in processes of their own ---


@pytest.mark.fault("E1")
def test_a_process_with_a_typo_ends_with_2_and_the_nearest_key(data_folder, tmp_path):
    done = run(command(data_folder, tmp_path / "w", lerning_rate=1))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: config has no 'lerning_rate' (did you mean 'optim.learning_rate'?)\n"
    )
    assert not (tmp_path / "w").exists()


@pytest.mark.fault("E6")
def test_a_process_whose_batch_does_not_divide_over_its_devices_ends_with_2(data_folder, tmp_path):
    from command import ENVIRONMENT

    four = ENVIRONMENT | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = run(command(data_folder, tmp_path / "w", train__batch_size=6), env=four)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: train.batch_size=6 does not divide over 4 devices; 4 or 8 would\n"
    )
    assert "Traceback" not in done.stderr


def test_debug_shows_where_it_came_from(deeplab, tmp_path):
    arguments = V3PLUS, "--config.data.name=vok", f"--workdir={tmp_path / 'w'}", "--debug"
    with pytest.raises(ConfigError, match="did you mean 'voc'"):  # Python then shows the trace
        deeplab(*arguments)


# --- keys and values ---


@pytest.mark.fault("E1")
@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("lerning_rate", "optim.learning_rate"),
        ("optim.lerning_rate", "optim.learning_rate"),
        ("learning_rate", "optim.learning_rate"),
        ("train.step", "train.steps"),
        ("eval.model.output_strid", "eval.model.output_stride"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_key(refused, key, nearest):
    assert f"config has no {key!r} (did you mean {nearest!r}?)" in refused(
        V3PLUS, f"--config.{key}=1"
    )


@pytest.mark.fault("E2")
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps=many", "train.steps"),
        ("train.steps=1.5", "train.steps"),
        ("train.steps=None", "train.steps"),
        ("optim.learning_rate=fast", "optim.learning_rate"),
        ("optim.learning_rate=nan", "is no finite number"),
        ("data.flip=perhaps", "data.flip"),
        ("data.crop_size=(513,'x')", "'x' in it is no whole number"),
        ("eval.eval_scales=(None,)", "None in it is no number"),
        ("model.atrous_rates=6", "takes a word or a tuple"),
        ("model={}", "config.model is a section"),
        ("seed=-1", "must not be negative"),
    ],
)
def test_values_of_the_wrong_type_are_refused(refused, override, words):
    assert words in refused(V3PLUS, f"--config.{override}")


def test_overrides_of_the_wrong_kind_are_config_errors():
    for key, value in (("optim.learning_rat", 1.0), ("train.steps", "many"), ("crf", None)):
        with pytest.raises(ConfigError, match=key.split(".")[-1]):
            configuration.load(f"{CONFIGS}/v3plus.py", {key: value})
    with pytest.raises(ConfigError, match="at most one variant"):
        configuration.load(f"{CONFIGS}/v3plus.py:voc,folder")


# --- atrous rates ---


@pytest.mark.fault("E3")
def test_rates_that_do_not_fit_the_output_stride_are_pointed_out_before_training():
    def told(**changes):
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        return advice.before_training(
            configuration.load(f"{CONFIGS}/v3plus.py:xception_65,voc", changes)
        )

    (sentence,) = told(model__output_stride=8, model__atrous_rates=(6, 12, 18))
    assert sentence.startswith("warning: atrous rates (6, 12, 18) at output stride 8")
    assert "--config.model.atrous_rates='(12, 24, 36)'" in sentence
    assert told(model__output_stride=8) == []  # "auto" follows
    assert told(model__output_stride=8, model__atrous_rates=(12, 24, 36)) == []
    assert told(model__output_stride=16, model__atrous_rates=(6, 12, 18)) == []
    # In crops half as large they reach as far as the papers' do in theirs.
    half = {"data__crop_size": (257, 257), "eval__crop_size": (257, 257)}
    assert told(**half, model__output_stride=8, model__atrous_rates=(6, 12, 18)) == []


@pytest.mark.fault("E3")
def test_a_training_says_so_of_rates_that_do_not_fit(data_folder, tmp_path, capsys):
    rates = {"model__output_stride": 8, "model__atrous_rates": (6, 12, 18)}
    config = small(data_folder, data__crop_size=(513, 513), train__steps=0, **rates)
    main.run(config, "train", tmp_path / "w")
    assert "warning: atrous rates (6, 12, 18) at output stride 8" in capsys.readouterr().out


def test_rates_written_for_training_follow_the_evaluation_stride(tmp_path):
    config = small(tmp_path, model__atrous_rates=(2, 4, 6), eval__model__output_stride=8)
    assert configuration.eval_model(config)["atrous_rates"] == (4, 8, 12)
    config = small(tmp_path, model__atrous_rates="auto", eval__model__output_stride=8)
    assert configuration.eval_model(config)["atrous_rates"] == "auto"
    config = small(tmp_path, eval__model__atrous_rates=(1, 3), eval__model__output_stride=8)
    assert configuration.eval_model(config)["atrous_rates"] == (1, 3)


# --- names ---


@pytest.mark.fault("E4")
def test_an_unknown_backbone_is_answered_with_those_there_are(refused):
    told = refused(V3PLUS, "--config.model.backbone=xceptoin_65")
    assert "'xceptoin_65' is not one of" in told
    assert all(repr(name) in told for name in BACKBONES)


@pytest.mark.fault("E4")
def test_an_unknown_dataset_is_answered_with_those_there_are(refused):
    from deeplab_jax.data.pipeline import DATASETS

    told = refused(V3PLUS, "--config.data.name=vok")
    assert "did you mean 'voc'" in told
    assert all(name in told for name in DATASETS)
    assert "no preset 'resnet_9'; variants: xception_41" in refused(V3PLUS + ":resnet_9")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode=trian"], "did you mean 'train'"),
        (["--wrkdir=x"], "wrkdir"),
        (["stray"], "'stray' is no flag"),
        (["--config.model.output_stride=12"], ", ".join(map(str, OUTPUT_STRIDES))),
        (["--config.optim.name=adam"], "is not one of sgd, adamw"),
        ([V3PLUS], "--config is given 2 times"),
    ],
)
def test_other_unknown_names_are_refused(refused, arguments, words):
    assert words in refused(V3PLUS, *arguments)


# --- what is missing ---


@pytest.mark.fault("E5")
def test_without_a_workdir_or_a_configuration_one_line_says_so(refused):
    assert "--workdir=DIR is missing" in refused(V3PLUS, workdir=None)
    assert "--config=FILE.py is missing, for instance" in refused()
    assert "--config=configs/nothing.py: no such file" in refused("--config=configs/nothing.py")


@pytest.mark.fault("E5")
def test_a_folder_as_a_configuration_is_no_file(refused):
    assert f"--config={CONFIGS}: no such file" in refused(f"--config={CONFIGS}")


# --- batches ---


@pytest.mark.fault("E6")
@pytest.mark.parametrize(("size", "sizes"), [(1, "2 would"), (3, "2 or 4 would")])
def test_a_batch_that_does_not_divide_over_the_devices_is_told_which_would(
    data_folder, tmp_path, size, sizes
):
    assert jax.device_count() == 2
    with pytest.raises(ConfigError, match=f"train.batch_size={size} .* 2 devices; {sizes}") as told:
        main.run(small(data_folder, train__batch_size=size), "train", tmp_path / "w")
    assert told.value.exit_code == 2
