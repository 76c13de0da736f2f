"""A network ready to use, from whatever holds one: `deeplab_jax.load(path).segment(image)`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from deeplab_jax import checkpoint, config, export, importers, models, pictures
from deeplab_jax.data import files, pipeline
from deeplab_jax.data import labels as label_files
from deeplab_jax.data.labels import IGNORE_LABEL, Labels
from deeplab_jax.errors import WeightsError
from deeplab_jax.models.folding import fold_batch_norm
from deeplab_jax.predict import predict


class Segmenter:
    """Segments images of any size.

    Attributes:
      labels: names, colours and ids of the classes.
    """

    def __init__(self, answer: Callable[[np.ndarray], np.ndarray], labels: Labels):
        self._answer, self.labels = answer, labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return self.labels.names

    @property
    def palette(self) -> np.ndarray:
        """[256, 3] uint8 RGB, a colour a label."""
        return self.labels.palette

    def segment(self, image: Any) -> np.ndarray:
        """Labels [H, W] uint8 of an image: a path, a PIL image or [H, W, 3] uint8 RGB.

        Raises:
          DataError: for a file that is no image.
          ValueError: for an array of another kind.
        """
        return self._answer(_pixels(image))

    def overlay(self, image: Any, labels: np.ndarray | None = None) -> np.ndarray:
        """The image with the colours of its labels laid over it, [H, W, 3] uint8."""
        image = _pixels(image)
        return pictures.overlay(
            image, self.segment(image) if labels is None else labels, self.palette
        )


def load(path: str | Path, **options: Any) -> Segmenter:
    """The network in a workdir of ours, an exported folder, or a foreign weight file.

    Args:
      path: a workdir of `--mode=train` or `import` (its newest checkpoint), a folder of
        `--mode=export`, or what `importers.load` reads.
      options: keywords of `predict.predict` in place of the stored ones; an export has none.

    Raises:
      WeightsError: if there is nothing of the kind.
    """
    path = Path(path).expanduser()
    if (path / export.MODEL).is_file():
        if options:
            raise WeightsError(f"{path} is an exported network: it takes no {', '.join(options)}")
        return _exported(path)
    if checkpoint.latest_step(path) is not None:
        return _trained(path, options)
    return _foreign(path, options)


def _exported(folder: Path) -> Segmenter:
    program = jax.export.deserialize(bytearray((folder / export.MODEL).read_bytes()))
    call = jax.jit(program.call)

    def answer(image):
        found = call(image[None])
        return np.asarray(found["labels"] if isinstance(found, dict) else found)[0]

    return Segmenter(answer, label_files.read(folder / export.LABELS, IGNORE_LABEL))


def _trained(workdir: Path, options) -> Segmenter:
    try:
        stored = _tuples(json.loads((workdir / "config.json").read_text()))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{workdir}: a checkpoint without its config.json ({error})") from error
    stored = {"eval": {"model": {}}, "predict": {}} | stored
    keywords = config.eval_model(stored)
    module = models.build(**keywords)
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), _dummy(keywords)))
    variables, _ = checkpoint.load_variables(workdir, like)
    conventions = {
        "normalization": stored["data"]["normalization"],
        "align_corners": keywords["align_corners"],
    }
    known, ignore_label = workdir / export.LABELS, stored["data"].get("ignore_label", IGNORE_LABEL)
    labels = _usual(keywords["num_classes"])
    if known.is_file():
        labels = label_files.read(known, ignore_label)
    return _live(module, variables, labels, conventions | _predicting(stored) | options)


def _foreign(path: Path, options) -> Segmenter:
    found = importers.identify(path)
    if found.trunk:
        raise WeightsError(f"{path}: a backbone alone segments nothing; train from it first")
    module = models.build(**found.model)
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), _dummy(found.model)))
    variables = importers.load(path, like)
    conventions = {
        "normalization": found.normalization,
        "align_corners": found.model.get("align_corners", True),
    }
    return _live(module, variables, _usual(found.model["num_classes"]), conventions | options)


def _live(module, variables, labels: Labels, options) -> Segmenter:
    variables = fold_batch_norm(module, variables)
    return Segmenter(lambda image: predict(module, variables, image, **options), labels)


def _predicting(stored) -> dict[str, Any]:
    """The keywords of `predict` in a training's config.json; an import's has none."""
    options = dict(stored["predict"])
    if options.get("crf"):
        options["crf"] = stored["crf"]
    return options


def _usual(classes: int) -> Labels:
    """Names for weights that have none: by their number PASCAL VOC's or Cityscapes'."""
    name = {21: "voc", 19: "cityscapes"}.get(classes)
    if name is None:
        return label_files.labels((), classes)
    return pipeline.class_labels({"name": name, "root": "", "ignore_label": IGNORE_LABEL}, classes)


def _dummy(keywords) -> np.ndarray:
    return np.zeros((1, 65, 65, sum(keywords.get("channel_groups") or (3,))), np.float32)


def _pixels(image: Any) -> np.ndarray:
    if isinstance(image, str | Path):
        return files.read_image(image)
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    return np.asarray(image)


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
