"""Looks at a whole dataset before any training: ids, sizes, files that cannot be used.

It also computes class weights, and for a user's own data writes a configuration that runs as it is.
"""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deeplab_jax import advice, pictures, runtime
from deeplab_jax import config as configuration
from deeplab_jax.data import balance, files, pipeline
from deeplab_jax.data.labels import Labels
from deeplab_jax.errors import DataError, UnreadableError, first_few

LARGEST_CROP = 513  # px, the papers'; larger images are cut
TILES = 12
COMMAND = ("python", "-m", "deeplab_jax.main")


class Found(NamedTuple):
    """What `check` saw of a split.

    Attributes:
      report: for people.
      counts: pixels of each class in every good example, [N, classes] int64.
      sizes: {(height, width): examples}.
    """

    report: str
    counts: np.ndarray
    sizes: dict[tuple[int, int], int]


def check_data(config, workdir: Path, spec: str | None) -> None:
    """Checks the training and the evaluation split; says and writes what it found.

    Args:
      config: the whole configuration, its number of classes known.
      workdir: reports go to its folder check_data.
      spec: "FILE.py:preset" that `config` came from; None: no configuration is written.

    Raises:
      DataError: listing what is wrong in both splits, after the reports of what is right.
    """
    out, data = workdir / "check_data", config.data
    strict = data.to_dict() | {"on_error": "error"}
    names = pipeline.class_labels(data, config.model.num_classes)
    found, sources, problems = {}, {}, []
    for split in dict.fromkeys((data.train_split, config.eval.split)):
        try:
            sources[split] = pipeline.source(strict, split, config.model.num_classes)
            skip = data.on_error == "skip"
            found[split] = check(sources[split], split, names, data.ignore_label, out, skip)
        except DataError as error:
            problems.append(str(error))
            continue
        runtime.say(found[split].report)
        runtime.say(f"contact sheet: {out / split}.png\n")
    if len(sources) == 2 and (again := files.shared(*sources.values(), by_content=True)):
        runtime.say(shared_warning(again, *sources))
    if problems:
        raise DataError("\n".join(problems))
    train = found[data.train_split]
    weights = {name: balance.class_weights(name, train.counts) for name in balance.CLASS_WEIGHTS}
    for name, values in weights.items():
        runtime.say(f"class weights, {name}: {_numbers(values)}")
    runtime.write_whole(out / "class_weights.json", json.dumps(weights, indent=1) + "\n")
    if spec is not None and data.name in pipeline.OWN:
        _configure(config, spec, train, weights, workdir)


def shared_warning(again: Sequence[Path], train: str, evaluation: str) -> str:
    """The sentence for images that are in both splits."""
    return (
        f"warning: {len(again)} images of {train!r} are in {evaluation!r}, too; what is measured "
        f"there flatters the model:\n{first_few(again)}"
    )


def check(
    source, split: str, labels: Labels, ignore_label: int, folder: Path, skip: bool = False
) -> Found:
    """Reads every example of a split; writes a contact sheet.

    Args:
      source: random access; its errors are gathered, not raised.
      split: for the title.
      labels: names and colours.
      ignore_label: the id of void.
      folder: where SPLIT.png (up to 12 overlays) goes.
      skip: files that cannot be read are listed only, as training will pass over them.

    Raises:
      DataError: listing the bad examples, after the report of the good ones was printed.
    """
    classes = len(labels.names)
    counts, sizes, bad, unreadable, tiles = [], Counter(), [], [], []
    shown = set(np.linspace(0, len(source) - 1, min(TILES, len(source))).astype(int).tolist())
    with runtime.Progress(len(source), f"check {split}") as progress:
        for i in range(len(source)):
            try:
                example = source[i]
            except DataError as error:
                passed_over = skip and isinstance(error, UnreadableError)
                (unreadable if passed_over else bad).append(str(error))
                continue
            finally:
                progress.advance()
            label = example["label"]
            of_image = np.bincount(label.ravel(), minlength=max(classes, ignore_label) + 1)
            counts.append(of_image)
            sizes[label.shape] += 1
            if i in shown:
                shown_ids = np.where(label == ignore_label, 255, label)
                drawn = pictures.overlay(example["image"][..., :3], shown_ids, labels.palette)
                tiles.append(pictures.fit(drawn, 240))

    pixels = np.array(counts, np.int64).reshape(len(counts), max(classes, ignore_label) + 1)
    report = _report(split, len(source), len(bad + unreadable), pixels, sizes, labels, ignore_label)
    if unreadable:
        report += f"\n{len(unreadable)} will be passed over:\n{first_few(unreadable)}"
    if tiles:
        sheet = pictures.contact_sheet(tiles, split)
        runtime.write_whole(folder / f"{split}.png", pictures.png(sheet))
    if bad or not counts:
        runtime.say(report)
        raise DataError(
            f"{len(bad + unreadable)} of {len(source)} examples of {split!r} cannot be used:\n"
            + first_few(bad + unreadable)
        )
    return Found(report, pixels[:, :classes], dict(sizes))


def _report(split, total, bad, counts, sizes, labels, ignore_label) -> str:
    pixels, images_with = counts.sum(axis=0), (counts > 0).sum(axis=0)
    width = max(len("class"), *(len(name) for name in labels.names))
    labelled = max(pixels[: len(labels.names)].sum(), 1)
    lines = [
        f"{split}: {total} examples, {bad} of them bad",
        f"{'id':>4}  {'class':<{width}}  {'pixels %':>8}  images",
    ]
    for i, name in enumerate(labels.names):
        share = 100 * pixels[i] / labelled
        lines.append(f"{i:>4}  {name:<{width}}  {share:>8.3f}  {images_with[i]}")
    void = 100 * pixels[ignore_label] / max(pixels.sum(), 1)
    lines.append(f"{ignore_label:>4}  {'void':<{width}}  {void:>8.3f}  {images_with[ignore_label]}")
    if sizes:
        shown = ", ".join(f"{w}x{h} ({count})" for (h, w), count in sizes.most_common(5))
        lines.append(f"sizes (width x height): {shown}" + (", ..." if len(sizes) > 5 else ""))
    absent = [n for i, n in enumerate(labels.names) if not images_with[i]]
    if absent:
        lines.append(f"never labelled: {', '.join(absent)}")
    return "\n".join(lines)


# --- a configuration for the data ----------------------------------------------------------------


def _configure(config, spec: str, train: Found, weights, workdir: Path) -> None:
    """Writes check_data/config.py, and says the command that trains with it."""
    path = (workdir / "check_data" / "config.py").resolve()
    command = shlex.join([*COMMAND, f"--config={path}", f"--workdir={workdir.resolve()}"])
    file, _, preset = spec.partition(":")
    if Path(file).resolve() == path:  # it was checked as it is
        runtime.say(f"to train:\n\n  {command}\n")
        return
    preset = _resolved(preset)  # of configs/zoo.py it may be a file
    spec = f"{Path(file).resolve()}" + (f":{preset}" if preset else "")
    given = configuration.changes(spec, config)  # on the command line, which wins
    paths = {"data.root": _resolved(config.data.root), "init_from": _resolved(config.init_from)}
    ready = configuration.load(spec, fitting(config, train.sizes) | given | paths)
    rates = advice.fitting_rates(ready)
    if rates and "model.atrous_rates" not in given:
        ready.model.atrous_rates = rates
    changes = configuration.changes(spec, ready)
    runtime.write_whole(path, _config_text(spec, changes, weights, command))
    for warning in advice.before_training(configuration.load(str(path))):
        runtime.say(warning)
    runtime.say(f"a configuration for these data: {path}\nto train with it:\n\n  {command}\n")


def _resolved(path: str) -> str:
    """A path that holds in every folder, if there is something there."""
    there = Path(path).expanduser()
    return str(there.resolve()) if path and there.exists() else path


def fitting(config, sizes: Mapping[tuple[int, int], int]) -> dict[str, Any]:
    """Keys that follow from the sizes of the training images, {(height, width): images}.

    The crop covers the median image, up to the papers' 513 px; images of one size are evaluated
    at that size, others each at its own. All are k times the output stride plus 1.
    """
    stride = config.model.output_stride

    def covering(n: float) -> int:
        return -(-(int(n) - 1) // stride) * stride + 1

    every = np.repeat(list(sizes), list(sizes.values()), axis=0)
    median = np.median(every, axis=0)
    same = len(sizes) == 1
    return {
        "data.crop_size": tuple(min(covering(n), LARGEST_CROP) for n in median),
        "eval.crop_size": tuple(covering(n) for n in median) if same else None,
    }


def _config_text(spec: str, changes: Mapping[str, Any], weights, command: str) -> str:
    lines = [f"            {key!r}: {value!r}," for key, value in changes.items()]
    lines += ["            # Rare classes weigh more with one of these:"]
    lines += [
        f"            # 'loss.class_weights': {name!r},  # {_numbers(values)}"
        for name, values in weights.items()
    ]
    body = "\n".join(lines)
    # Paths may have any characters, and none of them must end the text that the command stands in.
    command = command.replace("\\", "\\\\").replace('"', '\\"')
    return f'''"""Made for your data by --mode=check_data, which writes it anew: change a copy.

    {command}
"""

from deeplab_jax import config


def get_config(preset=""):
    return config.load(
        {spec!r},
        {{
{body}
        }},
    )
'''


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
