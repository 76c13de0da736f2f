"""The modes of the command line: calls the library, turns user errors into a line and a code."""

import json
import sys
from pathlib import Path

import jax
from flax.traverse_util import flatten_dict

from deeplab_jax import (
    advice,
    checkpoint,
    classes,
    classify,
    command_line,
    convert,
    counting,
    evaluate,
    huge_pages,
    importers,
    models,
    pictures,
    runtime,
    tune_crf,
)
from deeplab_jax import check_data as checking
from deeplab_jax import config as configuration
from deeplab_jax import predict as prediction
from deeplab_jax import train as training
from deeplab_jax.data import balance, datasets, files, pipeline
from deeplab_jax.data.skipping import unreadable
from deeplab_jax.data.transforms import normalization
from deeplab_jax.errors import (
    ConfigError,
    DataError,
    ResourceError,
    UserError,
    WeightsError,
    did_you_mean,
)
from deeplab_jax.models.folding import fold_batch_norm

LABEL_MAPS = ("predict", "check_data", "tune_crf")  # modes that a classifier has no use for


def run(
    config,
    mode: str,
    workdir: Path,
    input: str | None = None,
    output: Path | None = None,
    profile: bool = False,
    spec: str | None = None,
):
    """Does one mode; what the command line and the tests call.

    Args:
      config: see configs/common.py; None only to import, the file then says what it is. A number
        of classes that is None becomes that of the user's own data.
      mode: one of `command_line.MODES`.
      workdir: for everything that is written.
      input: predict: file, folder or glob; import: weight file.
      output: predict, import: where to, if not workdir/predictions, workdir.
      profile: write a trace of the work to workdir/profile; of training a few steps.
      spec: "FILE.py:preset" of `config`; check_data bases the configuration it writes on it.

    Returns:
      The figures of the evaluation (train, eval), or None.

    Raises:
      UserError: with the sentence for the user and the exit code.
    """
    modes = command_line.MODES
    if mode not in modes:
        raise ConfigError(
            f"--mode={mode} is not one of {', '.join(modes)}" + did_you_mean(mode, modes)
        )
    if config is not None:
        classes.fill_in(config, mode, workdir)
        configuration.check(config)
    for folder in (workdir, output):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise ResourceError(f"{folder} is a file; --workdir and --output name folders")
    if config is not None and _scoring(config) is classify and mode in LABEL_MAPS:
        raise ConfigError(f"--mode={mode} is about label maps, and model.name=classifier has none")
    traces = workdir / "profile" if profile else None
    if mode == "train":
        return _train(config, workdir, traces)
    if mode == "import":
        return _import(config, input, output or workdir)
    with runtime.profile(traces):
        if mode == "predict":
            return _predict(config, workdir, input, output)
        if mode == "check_data":
            return checking.check_data(config, workdir, spec)
        others = {"eval": _eval, "count": _count, "tune_crf": _tune_crf}
        return others[mode](config, workdir)


def _train(config, workdir: Path, traces: Path | None):
    module, eval_module = _build(config)
    mesh = runtime.data_mesh()
    training.check_batch(config.train, mesh)
    source = pipeline.source(config.data, config.data.train_split, config.model.num_classes)
    source, class_weights = balance.balanced(
        source, config.data, config.loss, config.model.num_classes
    )
    recipe = config.to_dict()
    recipe["loss"]["class_weights"] = class_weights
    val_source = pipeline.source(config.data, config.eval.split, config.model.num_classes)
    labels = pipeline.class_labels(config.data, config.model.num_classes)
    _check_heads(config, source[0])
    channels = source[0]["image"].shape[-1]
    variables = training.init_variables(module, config.seed, channels)
    if checkpoint.latest_step(workdir) == 0:  # imported here
        variables, _ = checkpoint.load_variables(workdir, variables)
    elif config.init_from and not checkpoint.latest_step(workdir):
        variables = _load(config, variables)
    batches = pipeline.train_iterator(source, config.data, config.seed, config.train.batch_size)

    runtime.write_whole(workdir / "config.json", configuration.to_json(recipe))
    if _scoring(config) is evaluate:  # so that the checkpoint means something without its data
        runtime.write_whole(workdir / classes.KEPT, labels.to_json())
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    runtime.say(
        f"{config.model.name} {config.model.backbone}: {parameters:,} parameters, "
        f"{len(source)} training and {len(val_source)} {config.eval.split} images, "
        f"{mesh.size} {mesh.devices.flat[0].device_kind} device(s)"
    )
    for split, images in ((config.data.train_split, source), (config.eval.split, val_source)):
        if remark := datasets.remark(config.data.name, split, len(images)):
            runtime.say(remark)
    for warning in advice.before_training(config):
        runtime.say(warning)
    splits = config.data.train_split, config.eval.split
    if splits[0] != splits[1] and (again := files.shared(source, val_source)):
        runtime.say(checking.shared_warning(again, *splits))

    def evaluate_between(variables, step):
        scoring = _scoring(config)
        results = scoring.evaluate(
            eval_module, variables, val_source, config, labels, mesh=mesh
        ).figures
        _write_metrics(workdir, step, config.eval.split, results)
        runtime.say(f"step {step}  {config.eval.split} {scoring.headline(results)}")

    with batches:
        variables, step = training.train(
            module,
            variables,
            batches,
            recipe,
            workdir,
            mesh=mesh,
            evaluate=evaluate_between,
            position_check={
                "training images": len(source),
                "data fingerprint": files.fingerprint(source),
                "train.batch_size": config.train.batch_size,
                "seed": config.seed,
            },
            profile=traces,
        )
    if skipped := len(unreadable(source)):
        runtime.say(f"{skipped} training examples could not be read; others stood in for them")
    return _evaluate_fully(config, workdir, eval_module, variables, val_source, labels, step)


def _scoring(config):
    """The module that scores label maps, or classes of images: their calls are the same."""
    return classify if config.model.name == "classifier" else evaluate


def _eval(config, workdir: Path):
    module, eval_module = _build(config)
    source = pipeline.source(config.data, config.eval.split, config.model.num_classes)
    labels = pipeline.class_labels(config.data, config.model.num_classes)
    kept = classes.kept_labels(config, workdir)
    if kept is not None and kept.names != labels.names:
        runtime.say(f"warning: trained with the classes {kept.names}, the data have {labels.names}")
    _check_heads(config, source[0])
    variables, step = _trained(config, workdir, module, source[0]["image"].shape[-1])
    return _evaluate_fully(config, workdir, eval_module, variables, source, labels, step)


def _check_heads(config, example) -> None:
    for name in config.model.heads or {}:
        if f"label_{name}" not in example:
            raise DataError(
                f"model.heads names {name!r}, but data.name={config.data.name} has no label_{name}"
                " (the embedded scenes have one with --config.data.synthetic.geometry=True)"
            )
    _check_channels(config, example["image"].shape[-1])


def _check_channels(config, channels: int) -> None:
    groups = config.model.channel_groups
    if groups and sum(groups) != channels:
        raise ConfigError(f"model.channel_groups={tuple(groups)} for images of {channels} channels")


def _evaluate_fully(config, workdir, module, variables, source, labels, step):
    scoring = _scoring(config)
    found = scoring.evaluate(
        module,
        variables,
        source,
        config,
        labels,
        mesh=runtime.data_mesh(),
        trimap_widths=config.eval.trimap_widths,
        panels=config.eval.panels,
    )
    folder = workdir / "eval"
    results = found.figures
    weights = f"{workdir}, step {step}" if step else config.init_from or str(workdir)
    settings = evaluate.settings(config, weights, len(source))
    scoring.write(folder, found, labels, settings, config.crf)
    _write_metrics(workdir, step, config.eval.split, results)
    runtime.say(scoring.table(results))
    if left_out := results.get("left_out"):
        runtime.say(f"{left_out} of {len(source)} images could not be read and are left out")
    opened = "report.html, " if scoring is evaluate else ""
    runtime.say(f"{opened}pictures and tables in {folder}")
    return results


def _predict(config, workdir: Path, input: str | None, output: Path | None):
    if not input:
        raise ConfigError("--mode=predict needs --input=FILE, FOLDER or a quoted 'GLOB'")
    if config.data.channels != "rgb":
        raise ConfigError(
            f"--mode=predict reads RGB files, and the network sees data.channels="
            f"{config.data.channels}; --mode=eval shows its answers on a split"
        )
    paths = files.find_images(input)
    output = output or workdir / "predictions"
    targets = prediction.targets(paths, output)
    module, eval_module = _build(config)
    _check_channels(config, 3)
    variables, _ = _trained(config, workdir, module, 3)
    # Not frozen: images differ in size, and constants would make every size compile for longer.
    variables = fold_batch_norm(eval_module, variables)
    labels = classes.kept_labels(config, workdir)
    labels = labels or pipeline.class_labels(config.data, config.model.num_classes)
    raw_ids = labels.first_raw_ids if config.predict.raw_ids else None
    runtime.write_whole(output / "legend.png", pictures.png(pictures.legend(labels)))
    options = dict(config.predict) | {"crf": dict(config.crf) if config.predict.crf else None}
    options["raw_ids"] = None  # the overlay takes the classes' own
    runtime.write_whole(output / classes.KEPT, labels.to_json())
    with runtime.Progress(len(paths), "predict") as progress:
        for path, (index_file, overlay_file) in targets.items():
            image = files.read_image(path)
            pred = prediction.predict(eval_module, variables, image, **options)
            index = pictures.indexed(pred, labels.palette) if raw_ids is None else raw_ids[pred]
            runtime.write_whole(index_file, pictures.png(index))
            drawn = pictures.overlay(image, pred, labels.palette)
            runtime.write_whole(overlay_file, pictures.png(drawn))
            progress.advance()
    runtime.say(f"{len(paths)} images segmented: {output}")


def _tune_crf(config, workdir: Path):
    """Searches w1, sigma_alpha and sigma_beta on some images of the evaluation split."""
    module, eval_module = _build(config)
    source = pipeline.source(config.data, config.eval.split, config.model.num_classes)
    variables, step = _trained(config, workdir, module, source[0]["image"].shape[-1])
    variables = fold_batch_norm(eval_module, variables)
    setting = {"step": step, "init_from": config.init_from}
    best = tune_crf.tune(eval_module, variables, source, config, workdir / "tune_crf", setting)
    found = " ".join(f"--config.crf.{axis}={best[axis]:g}" for axis in tune_crf.AXES)
    runtime.say(f"best: {tune_crf.shown(best)}\n{found}")
    return best


def _import(config, input: str | None, output: Path):
    if not input:
        raise ConfigError("--mode=import needs --input=FILE, a weight file or checkpoint prefix")
    model = normalization = None
    if config is not None:
        model, normalization = dict(config.model), config.data.normalization
    convert.convert(Path(input).expanduser(), output, model, normalization)


def _count(config, workdir: Path | None):
    """Prints parameters and multiply-adds by layer, of the model and the scales of evaluation."""
    _, module = _build(config)
    size = config.eval.crop_size or config.data.crop_size
    channels = sum(config.model.channel_groups or (3,))
    result = counting.count(module, size, channels=channels)
    runtime.say(counting.table(result))
    scales, flips = config.eval.eval_scales, config.eval.add_flipped_images
    evaluation = f"{size[0]}x{size[1]}, scales {tuple(scales)}" + (", mirrored" if flips else "")
    result["evaluation"] = {"scales": list(scales), "flips": flips, "size": list(size)}
    for convention in counting.CONVENTIONS:
        total = counting.count_scales(
            module, size, scales, flips, convention, config.model.align_corners, channels
        )
        result["evaluation"][convention] = total
        runtime.say(f"{convention}: {total / 1e9:.2f} G multiply-adds at {evaluation}")
    if workdir:
        runtime.write_whole(workdir / "count.json", json.dumps(result, indent=1) + "\n")
    return result


def _build(config):
    """(module to train, module to evaluate), over the same variables."""
    try:
        normalization(config.data.normalization)
        return models.build(**config.model), models.build(**configuration.eval_model(config))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.model: {error}") from error


def _trained(config, workdir: Path, module, channels: int):
    """(variables, step): of the workdir's newest checkpoint, else of `init_from`."""
    like = jax.eval_shape(lambda: training.init_variables(module, 0, channels))
    if checkpoint.latest_step(workdir) is not None:
        _check_start(config, workdir)
        variables, step = checkpoint.load_variables(workdir, like)
        runtime.say(f"weights: {workdir}, step {step}")
        return variables, step
    if not config.init_from:
        raise WeightsError(f"{workdir}: no checkpoint here; train first or set --config.init_from")
    return _load(config, like), 0


def _check_start(config, workdir: Path) -> None:
    """Raises ConfigError if `init_from` names other weights than this workdir's came from."""
    try:
        start = json.loads((workdir / "config.json").read_text())["init_from"]
    except (OSError, ValueError, KeyError):
        return  # not written by this version: nothing to compare with
    wanted = config.init_from
    if wanted and wanted != start and Path(wanted).resolve() != workdir.resolve():
        raise ConfigError(
            f"{workdir} holds a checkpoint that came from {start or 'no weights'}, not from "
            f"init_from={wanted}; use another --workdir, or leave init_from out"
        )


def _load(config, target):
    init_from = str(Path(config.init_from).expanduser())
    for warning in advice.before_loading(config, Path(init_from)):
        runtime.say(warning)
    if checkpoint.latest_step(Path(init_from)) is not None:
        saved, step = checkpoint.read_variables(Path(init_from))
        source = {"/".join(path): array for path, array in flatten_dict(saved).items()}
        name = f"{init_from}, step {step}"
    else:
        source, name = init_from, init_from
    variables = importers.load(source, target, log=runtime.say, name=name)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables)):
        raise WeightsError(
            f"{init_from}: a backbone alone, or a classifier of other classes; train first"
        )
    return jax.device_put(variables)  # files give NumPy arrays, sent anew at every call


def _write_metrics(workdir: Path, step: int, split: str, results) -> None:
    writer = runtime.MetricWriter(workdir / "metrics.jsonl")
    writer.write({"step": step, "split": split} | results)


def cli() -> int:
    """Entry point of `python -m deeplab_jax.main` and of the `deeplab` script."""
    huge_pages.restart_with_them()
    return main()


def main() -> int:
    """The program of `sys.argv`; returns the exit code."""
    argv = sys.argv
    try:
        flags = command_line.parse(argv)
        if flags.help:
            print(command_line.help_text())
            return 0
        run(
            flags.config,
            flags.mode,
            Path(flags.workdir).expanduser() if flags.workdir else None,
            flags.input,
            Path(flags.output).expanduser() if flags.output else None,
            flags.profile,
            command_line.config_spec(argv),
        )
    except UserError as error:
        if "--debug" in argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        exhausted = not isinstance(error, jax.errors.JaxRuntimeError) or (
            "RESOURCE_EXHAUSTED" in str(error)
        )
        if "--debug" in argv or not exhausted:
            raise
        advice = "free disk or memory, check permissions, or lower train.batch_size"
        print(f"error: {type(error).__name__}: {error}; {advice}", file=sys.stderr)
        return ResourceError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(cli())
