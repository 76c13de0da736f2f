"""The modes of the command line: calls the library, turns user errors into a line and a code."""

import contextlib
import json
import signal
import sys
from pathlib import Path

from deeplab_jax import huge_pages

if __name__ == "__main__":  # before what takes seconds to load
    huge_pages.restart_with_them()

import jax
import numpy as np

from deeplab_jax import (
    advice,
    archive,
    checkpoint,
    classes,
    classify,
    command_line,
    convert,
    counting,
    evaluate,
    export,
    lock,
    networks,
    predict_files,
    processes,
    runtime,
    tune_crf,
)
from deeplab_jax import check_data as checking
from deeplab_jax import config as configuration
from deeplab_jax import score as scores
from deeplab_jax import train as training
from deeplab_jax.data import balance, datasets, download, files, inputs, pipeline
from deeplab_jax.data.labels import FILE
from deeplab_jax.data.skipping import unreadable
from deeplab_jax.errors import (
    ConfigError,
    DataError,
    Preempted,
    ResourceError,
    UserError,
    did_you_mean,
)
from deeplab_jax.models.folding import fold_batch_norm
from deeplab_jax.output import complain

# Modes that a classifier has no use for.
LABEL_MAPS = ("predict", "check_data", "tune_crf", "export", "score", "archive")


def run(
    config,
    mode: str,
    workdir: Path,
    input: str | None = None,
    output: Path | None = None,
    profile: bool = False,
    spec: str | None = None,
    truth: str | None = None,
):
    """Does one mode; what the command line and the tests call.

    Args:
      config: see configs/common.py; None only to import, the file then says what it is, and to
        score. A number of classes that is None becomes that of the user's own data.
      mode: one of `command_line.MODES`.
      workdir: for everything that is written.
      input: predict: file, folder or glob, export: likewise, to check it with; import: weight
        file; score, archive: folder of label images; download: an archive to unpack.
      output: predict, export, score, archive, import, download: where to, if not
        workdir/predictions, workdir/export, workdir/score, workdir/archive, workdir, data.root.
      profile: write a trace of the work to workdir/profile; of training a few steps.
      spec: "FILE.py:preset" of `config`; check_data bases the configuration it writes on it.
      truth: score: folder of masks.

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
    if mode == "download":
        return download.download_or_unpack(config, input, output)
    files.limit_pixels(files.MAX_PIXELS if config is None else config.data.max_pixels)
    if config is not None:
        classes.fill_in(config, mode, workdir)
        configuration.check(config)
        if config.deterministic:
            runtime.make_deterministic()
    for folder in (workdir, output):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise ResourceError(f"{folder} is a file; --workdir and --output name folders")
    if config is not None and _scoring(config) is classify and mode in LABEL_MAPS:
        raise ConfigError(f"--mode={mode} is about label maps, and model.name=classifier has none")
    traces = workdir / "profile" if profile and runtime.leads() else None
    if mode == "train":
        networks.build(config)  # what cannot be built leaves no workdir
        with lock.held(workdir) if runtime.leads() else contextlib.nullcontext():
            return _train(config, workdir, traces)
    if mode == "import":
        return _import(config, input, output or workdir)
    if mode == "score":
        return scores.score_files(config, input, truth, output or (workdir and workdir / "score"))
    if mode == "archive":
        return archive.pack_folder(config, input, output or workdir / "archive")
    with runtime.profile(traces):
        if mode == "export":
            return _export(config, workdir, input, output or workdir / "export")
        if mode == "predict":
            return _predict(config, workdir, input, output)
        if mode == "check_data":
            return checking.check_data(config, workdir, spec)
        others = {"eval": _eval, "count": _count, "tune_crf": _tune_crf}
        return others[mode](config, workdir)


def _train(config, workdir: Path, traces: Path | None):
    module, eval_module = networks.build(config)
    mesh = runtime.data_mesh(config.spatial_shards)
    training.check_batch(config, mesh)
    first = checkpoint.recover(workdir)
    first = None if processes.same(-1 if first is None else first, workdir) < 0 else first
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
    if first == 0:  # imported here
        variables, _ = checkpoint.load_variables(workdir, variables)
    elif config.init_from and not first:
        variables = networks.load(config, variables)
    index, count = processes.place()
    batches = pipeline.train_iterator(
        source, config.data, config.seed, config.train.batch_size, process=index, processes=count
    )

    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    runtime.say(
        f"{config.model.name} {config.model.backbone}: {parameters:,} parameters, "
        f"{len(source)} training and {len(val_source)} {config.eval.split} images, "
        f"{mesh.size} {mesh.devices.flat[0].device_kind} device(s)"
        + (f" of {count} processes" if count > 1 else "")
    )
    for split, images in ((config.data.train_split, source), (config.eval.split, val_source)):
        if remark := datasets.remark(config.data.name, split, len(images)):
            runtime.say(remark)
    for warning in advice.before_training(config):
        runtime.say(warning)
    splits = config.data.train_split, config.eval.split
    if splits[0] != splits[1] and (again := files.shared(source, val_source)):
        runtime.say(checking.shared_warning(again, *splits))

    def describe():  # so that the checkpoint means something without its data
        if not runtime.leads():
            return
        for change in configuration.differences(workdir / "config.json", recipe) if first else ():
            runtime.say(f"warning: resuming with {change}")
        runtime.write_whole(workdir / "config.json", configuration.to_json(recipe))
        if _scoring(config) is evaluate:
            runtime.write_whole(workdir / FILE, labels.to_json())

    def evaluate_between(variables, step):
        scoring = _scoring(config)
        results = scoring.evaluate(
            eval_module, variables, val_source, config, labels, mesh=mesh
        ).figures
        runtime.say(f"step {step}  {config.eval.split} {scoring.headline(results)}")
        return {"split": config.eval.split} | results, scoring.merit(results)

    with batches:
        variables, step = training.train(
            module,
            variables,
            batches,
            recipe,
            workdir,
            first=first,
            mesh=mesh,
            evaluate=evaluate_between,
            begun=describe,
            position_check={
                "training images": len(source),
                "data fingerprint": files.fingerprint(source),
                "train.batch_size": config.train.batch_size,
                "seed": config.seed,
            },
            profile=traces,
        )
    skipped = processes.gathered(np.array([*unreadable(source)], np.int64))
    if skipped := len(np.unique(np.concatenate(skipped))):
        runtime.say(f"{skipped} training examples could not be read; others stood in for them")
    with processes.Preemption() as preemption:
        results = preemption.until_asked(
            lambda: _evaluate_fully(
                config, workdir, eval_module, variables, val_source, labels, step
            )
        )
    if results is None:
        raise Preempted(
            f"{preemption.asked}: trained, step {step} is in {workdir}; the same command evaluates"
        )
    figure = _scoring(config).merit(results)
    this = checkpoint.Best(step, results[figure], figure)
    if this.beats(checkpoint.read_best(workdir)):
        checkpoint.note_best(workdir, this)
    return results


def _scoring(config):
    """The module that scores label maps, or classes of images: their calls are the same."""
    return classify if config.model.name == "classifier" else evaluate


def _eval(config, workdir: Path):
    module, eval_module = networks.build(config)
    source = pipeline.source(config.data, config.eval.split, config.model.num_classes)
    labels = pipeline.class_labels(config.data, config.model.num_classes)
    kept = classes.kept_labels(config, workdir)
    if kept is not None and kept.names != labels.names:
        runtime.say(f"warning: trained with the classes {kept.names}, the data have {labels.names}")
    _check_heads(config, source[0])
    variables, step = networks.trained(config, workdir, module, source[0]["image"].shape[-1])
    processes.same(step, workdir)
    return _evaluate_fully(config, workdir, eval_module, variables, source, labels, step)


def _check_heads(config, example) -> None:
    for name in config.model.heads or {}:
        if f"label_{name}" not in example:
            raise DataError(
                f"model.heads names {name!r}, but data.name={config.data.name} has no label_{name}"
                " (the embedded scenes have one with --config.data.synthetic.geometry=True)"
            )
    networks.check_channels(config, example["image"].shape[-1])


def _evaluate_fully(config, workdir, module, variables, source, labels, step):
    scoring = _scoring(config)
    found = scoring.evaluate(
        module,
        variables,
        source,
        config,
        labels,
        mesh=runtime.data_mesh(config.spatial_shards),
        trimap_widths=config.eval.trimap_widths,
        upper_bounds=config.eval.upper_bounds,
        panels=config.eval.panels,
    )
    folder = workdir / "eval"
    results = found.figures
    weights = f"{workdir}, step {step}" if step else config.init_from or str(workdir)
    settings = evaluate.settings(config, weights, len(source))
    if runtime.leads():
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
    output = output or workdir / "predictions"
    found = inputs.find_images(input, without=output)
    targets = predict_files.targets(found, output, config.predict.outputs)
    module, eval_module = networks.build(config)
    networks.check_channels(config, 3)
    variables, _ = networks.trained(config, workdir, module, 3)
    # Not frozen: images differ in size, and constants would make every size compile for longer.
    variables = fold_batch_norm(eval_module, variables)
    if config.spatial_shards > 1:
        devices = jax.local_devices()[: config.spatial_shards]
        mesh = runtime.data_mesh(config.spatial_shards, devices)
        eval_module = runtime.spatially(eval_module, mesh)
        variables = processes.own(variables, mesh)
    labels = classes.labels_of(config, workdir)
    options = configuration.predict_options(config)
    more = {key: config.predict[key] for key in ("batch_size", "archive")}
    predict_files.predict_files(eval_module, variables, targets, output, labels, options, **more)
    runtime.say(f"{len(found)} images segmented: {output}")


def _export(config, workdir: Path, input: str | None, folder: Path):
    """Writes the network as it is evaluated, as a program that needs nothing of this package."""
    given = config.predict
    others = ("add_flipped_images", "crf", "tile_size", "resize", "raw_ids")
    if tuple(given.eval_scales) != (1.0,) or any(given[key] for key in others):
        raise ConfigError(
            f"--mode=export writes the network alone: predict.eval_scales, {', '.join(others)} are "
            "of --mode=predict"
        )
    module, eval_module = networks.build(config)
    channels = pipeline.channels(config.data)
    networks.check_channels(config, channels)
    variables, step = networks.trained(config, workdir, module, channels)
    labels = classes.labels_of(config, workdir)
    photographs = [files.read_image(path) for path in inputs.find_images(input)] if input else ()
    found = export.export(
        eval_module,
        variables,
        folder,
        labels,
        normalization=given.normalization,
        align_corners=given.align_corners,
        crop_size=given.crop_size,
        channels=channels,
        origin=f"{config.model.name} {config.model.backbone}, step {step}",
        photographs=photographs,
        **config.export,
    )
    for case in found["cases"]:
        height, width = case["size"]
        runtime.say(
            f"{case['images']} of {width}x{height} px: {case['different']} of {case['pixels']} "
            f"pixels differ from the network, {case['classes']} classes"
        )
    runtime.say(f"{found['bytes'] / 1e6:.1f} MB for {', '.join(found['platforms'])}: {folder}")
    return found


def _tune_crf(config, workdir: Path):
    """Searches w1, sigma_alpha and sigma_beta on some images of the evaluation split."""
    module, eval_module = networks.build(config)
    source = pipeline.source(config.data, config.eval.split, config.model.num_classes)
    variables, step = networks.trained(config, workdir, module, source[0]["image"].shape[-1])
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
    _, module = networks.build(config)
    size = config.eval.crop_size or config.data.crop_size
    channels = sum(config.model.channel_groups or (pipeline.channels(config.data),))
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


def _write_metrics(workdir: Path, step: int, split: str, results) -> None:
    writer = runtime.MetricWriter(workdir / "metrics.jsonl")
    writer.write({"step": step, "split": split} | results)


def cli() -> int:
    """Entry point of the `deeplab` script."""
    huge_pages.restart_with_them()
    return main()


def main() -> int:
    """The program of `sys.argv`; returns the exit code."""
    argv, together = sys.argv, False
    if "--debug" not in argv:
        command_line.quieten_libraries()
    try:
        flags = command_line.parse(argv)
        if flags.help:
            print(command_line.help_text())
            return 0
        together = command_line.join(flags)
        run(
            flags.config,
            flags.mode,
            Path(flags.workdir).expanduser() if flags.workdir else None,
            flags.input,
            Path(flags.output).expanduser() if flags.output else None,
            flags.profile,
            command_line.config_spec(argv),
            flags.truth,
        )
    except (Exception, KeyboardInterrupt) as error:
        told, debug = command_line.in_words(error), "--debug" in argv
        if together and not isinstance(told, processes.OF_ALL):
            processes.end_with(told, debug)
        if isinstance(error, KeyboardInterrupt) and not debug:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        if debug or not isinstance(told, UserError):
            raise
        if not together or runtime.leads():
            prefix = "" if isinstance(told, Preempted) else "error: "
            complain(f"{prefix}{told}")
        return told.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
