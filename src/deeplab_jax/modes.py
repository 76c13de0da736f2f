"""What each mode of the command line does: calls the library, and says what came of it."""

import json
from pathlib import Path

import jax
import numpy as np

from deeplab_jax import (
    advice,
    checkpoint,
    classes,
    classify,
    convert,
    counting,
    evaluate,
    export,
    lock,
    loop,
    networks,
    predict_files,
    processes,
    runtime,
    tune_crf,
)
from deeplab_jax import check_data as checking
from deeplab_jax import config as configuration
from deeplab_jax import train as training
from deeplab_jax.data import balance, datasets, files, image_files, inputs, pipeline
from deeplab_jax.data.labels import FILE
from deeplab_jax.data.skipping import unreadable
from deeplab_jax.errors import ConfigError, DataError, Preempted
from deeplab_jax.models.folding import fold_batch_norm


def train_and_evaluate(config, workdir: Path, traces: Path | None):
    """Trains in `workdir`, from its newest checkpoint on, and evaluates."""
    module, eval_module = networks.build(config)
    mesh = runtime.data_mesh(config.spatial_shards)
    training.check_batch(config, mesh)
    # From here on: what cannot be trained leaves no workdir.
    with lock.held(workdir), processes.Preemption() as preemption:
        return _train(config, workdir, traces, module, eval_module, mesh, preemption)


def _train(config, workdir: Path, traces: Path | None, module, eval_module, mesh, preemption):
    first = checkpoint.recover(workdir)
    processes.same(first, workdir)
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
        if scoring_of(config) is evaluate:
            runtime.write_whole(workdir / FILE, labels.to_json())

    def evaluate_between(variables, step):
        scoring = scoring_of(config)
        results = scoring.evaluate(
            eval_module, variables, val_source, config, labels, mesh=mesh, between=preemption.check
        ).figures
        runtime.say(f"step {step}  {config.eval.split} {scoring.headline(results)}")
        return {"split": config.eval.split} | results, scoring.merit(results)

    with batches:
        variables, step = loop.train(
            module,
            variables,
            batches,
            recipe,
            workdir,
            first=first,
            mesh=mesh,
            preemption=preemption,
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
    preemption.alone()
    results = preemption.until_asked(
        lambda: _evaluate_fully(
            config,
            workdir,
            eval_module,
            variables,
            val_source,
            labels,
            step,
            between=preemption.check,
        )
    )
    if results is None:
        raise Preempted(
            f"{preemption.asked}: trained, step {step} is in {workdir}; the same command evaluates"
        )
    figure = scoring_of(config).merit(results)
    this = checkpoint.Best(step, results[figure], figure)
    if this.beats(checkpoint.read_best(workdir)):
        checkpoint.note_best(workdir, this)
    return results


def scoring_of(config):
    """The module that scores label maps, or classes of images: their calls are the same."""
    return classify if config.model.name == "classifier" else evaluate


def evaluate_weights(config, workdir: Path):
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


def _evaluate_fully(config, workdir, module, variables, source, labels, step, between=lambda: None):
    scoring = scoring_of(config)
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
        between=between,
    )
    folder = workdir / "eval"
    results = found.figures
    weights = f"{workdir}, step {step}" if step else config.init_from or str(workdir)
    settings = evaluate.settings(config, weights, len(source))
    runtime.say(scoring.table(results))  # first: the disk may be full, or closed
    if runtime.leads():
        scoring.write(folder, found, labels, settings, config.crf)
    _write_metrics(workdir, step, config.eval.split, results)
    if left_out := results.get("left_out"):
        runtime.say(f"{left_out} of {len(source)} images could not be read and are left out")
    opened = "report.html, " if scoring is evaluate else ""
    runtime.say(f"{opened}pictures and tables in {folder}")
    return results


def predict(config, workdir: Path, input: str | None, output: Path | None):
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


def export_network(config, workdir: Path, input: str | None, folder: Path):
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
    photographs = (
        [image_files.read_image(path) for path in inputs.find_images(input)] if input else ()
    )
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


def tune(config, workdir: Path):
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


def import_weights(config, input: str | None, output: Path):
    if not input:
        raise ConfigError("--mode=import needs --input=FILE, a weight file or checkpoint prefix")
    model = normalization = None
    if config is not None:
        model, normalization = dict(config.model), config.data.normalization
    convert.convert(Path(input).expanduser(), output, model, normalization)


def count(config, workdir: Path | None):
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
