"""A network ready to use, from whatever holds one: `deeplab_jax.load(path).segment(image)`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from deeplab_jax import checkpoint, config, export, importers, models, pictures
from deeplab_jax import train as training
from deeplab_jax.data import image_files, pipeline
from deeplab_jax.data import labels as label_files
from deeplab_jax.data.labels import FILE, IGNORE_LABEL, Labels
from deeplab_jax.errors import DataError, WeightsError
from deeplab_jax.models.folding import fold_batch_norm
from deeplab_jax.predict import predict


class Segmenter:
    """Segments images of any size.

    Attributes:
      labels: names, colours and ids of the classes.
    """

    def __init__(
        self,
        answer: Callable[[np.ndarray], np.ndarray],
        labels: Labels,
        channels: int = 3,
        seen: str = "rgb",
    ):
        self._answer, self.labels = answer, labels
        self._channels, self._seen = channels, seen

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return self.labels.names

    @property
    def palette(self) -> np.ndarray:
        """[256, 3] uint8 RGB, a colour a label."""
        return self.labels.palette

    def segment(self, image: Any) -> np.ndarray:
        """Labels [H, W] uint8 of an image: a path, a PIL image, or [H, W, C] uint8, RGB first.

        Raises:
          DataError: for a file that is no image, or where the network sees other channels.
          ValueError: for an array of another kind.
        """
        return self._answer(self._pixels(image))

    def overlay(self, image: Any, labels: np.ndarray | None = None) -> np.ndarray:
        """The image with the colours of its labels laid over it, [H, W, 3] uint8."""
        image = self._pixels(image)
        return pictures.overlay(
            image, self.segment(image) if labels is None else labels, self.palette
        )

    def _pixels(self, image: Any) -> np.ndarray:
        if isinstance(image, str | Path | Image.Image):
            if self._seen != "rgb":
                raise DataError(
                    f"the network sees {self._seen}: give it an array [H, W, {self._channels}]"
                )
            if isinstance(image, Image.Image):
                return image_files.upright_rgb(image, "the image")
            return image_files.read_image(image)
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] != self._channels or image.dtype != np.uint8:
            raise ValueError(
                f"an image is [H, W, {self._channels}] uint8, not {image.dtype} {image.shape}"
            )
        return image


def load(path: str | Path, *, step: int | str = "newest", **options: Any) -> Segmenter:
    """The network in a workdir of ours, an exported folder, or a foreign weight file.

    Args:
      path: a workdir of `--mode=train` or `import` (a checkpoint), a folder of
        `--mode=export`, or what `importers.load` reads.
      step: of a workdir, "newest", "best" or the number of one.
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
        return _trained(path, step, options)
    return _foreign(path, options)


def _exported(folder: Path) -> Segmenter:
    program = jax.export.deserialize(bytearray((folder / export.MODEL).read_bytes()))
    call = jax.jit(program.call)

    def answer(image):
        found = call(image[None])
        return np.asarray(found["labels"] if isinstance(found, dict) else found)[0]

    labels = label_files.read(folder / FILE, IGNORE_LABEL)
    return Segmenter(answer, labels, program.in_avals[0].shape[-1])


def _trained(workdir: Path, step, options) -> Segmenter:
    try:
        stored = _tuples(json.loads((workdir / "config.json").read_text()))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{workdir}: a checkpoint without its config.json ({error})") from error
    model, data = stored["model"], stored["data"]
    if model["name"] == "classifier":
        raise WeightsError(f"{workdir}: a classifier of images, which segments nothing")
    trained_here = "predict" in stored  # else by --mode=import, which knows the model alone
    if trained_here:
        model = config.eval_model(stored)
    _check_known(model["backbone"], workdir)
    module = models.build(**model)
    channels = pipeline.channels(data) if trained_here else 3
    like = training.variable_shapes(module, channels)
    variables, _ = checkpoint.load_variables(workdir, like, step)
    labels = pipeline.usual_labels(model["num_classes"])
    if (workdir / FILE).is_file():
        labels = label_files.read(workdir / FILE, data["ignore_label"])
    conventions = _conventions(model, data["normalization"])
    if trained_here:
        conventions |= config.predict_options(stored) | {"raw_ids": None}
    seen = data.get("channels", "rgb") if channels == 3 else f"{channels} channels"
    return _live(module, variables, labels, conventions | options, channels, seen)


def _check_known(backbone: str, workdir: Path) -> None:
    """A record must not have code run: what it names beyond this package is imported already."""
    module, own, _ = backbone.partition(":")
    if own and module not in sys.modules:
        raise WeightsError(
            f"{workdir}: its config.json names the backbone {backbone!r}; `import {module}` before "
            "you load it, if you trust that module"
        )


def _foreign(path: Path, options) -> Segmenter:
    found = importers.identify(path)
    if found.trunk:
        raise WeightsError(f"{path}: a backbone alone segments nothing; train from it first")
    module = models.build(**found.model)
    variables = importers.load(path, training.variable_shapes(module))
    labels = pipeline.usual_labels(found.model["num_classes"])
    conventions = _conventions(found.model, found.normalization)
    return _live(module, variables, labels, conventions | options)


def _conventions(model, normalization: str) -> dict[str, Any]:
    return {"normalization": normalization, "align_corners": model.get("align_corners", True)}


def _live(module, variables, labels: Labels, options, *images) -> Segmenter:
    variables = fold_batch_norm(module, variables)
    return Segmenter(lambda image: predict(module, variables, image, **options), labels, *images)


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
