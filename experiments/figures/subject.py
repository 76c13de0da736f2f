"""What the figures show: a scene, a network, and what scores the scene's pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colors

from deeplab_jax import config as configuration
from deeplab_jax import networks, ops
from deeplab_jax.data import pipeline
from deeplab_jax.errors import ConfigError
from deeplab_jax.predict import probabilities

# Okabe and Ito's colours, which the colour-blind tell apart.
OKABE_ITO = "#E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7 #000000".split()


class Scorer(NamedTuple):
    """What scores pixels.

    Attributes:
      title: for people.
      probs: {"image", "label"} → [H, W, C] float32.
    """

    title: str
    probs: Callable[[dict], np.ndarray]


class Subject(NamedTuple):
    """What the figures show.

    Attributes:
      source: the evaluation split.
      scene: {"image" [H, W, 3] uint8, "label" [H, W], ...} of it.
      names, palette: of the classes; [256, 3] uint8.
      config: the network's.
      module: the network.
      variables: trained ones, or None.
      fine, coarse: scores with and without a decoder.
    """

    source: Any
    scene: dict
    names: tuple[str, ...]
    palette: np.ndarray
    config: Any
    module: Any
    variables: Any
    fine: Scorer
    coarse: Scorer


def true_scores(stride: int, classes: int) -> Scorer:
    """The best that logits at a stride can say: the truth there, upsampled bilinearly."""

    def probs(example):
        label = example["label"]
        scores = np.eye(256, dtype=np.float32)[label[::stride, ::stride]][None, ..., :classes]
        return np.asarray(ops.resize_bilinear(scores, label.shape, align_corners=True)[0])

    return Scorer(f"truth at stride {stride}", probs)


def network_scores(title: str, config, module, variables) -> Scorer:
    """What a trained network says, as evaluation sees images."""

    def probs(example):
        return probabilities(
            module,
            variables,
            example["image"],
            crop_size=config.eval.crop_size,
            normalization=config.data.normalization,
            align_corners=config.model.align_corners,
        )

    return Scorer(title, probs)


def palette_of(labels) -> np.ndarray:
    """[256, 3] uint8: Okabe and Ito's colours where they suffice, else the dataset's own."""
    if len(labels.names) > len(OKABE_ITO) + 1:
        return labels.palette
    palette = np.full((256, 3), 255, np.uint8)
    for i, hue in enumerate(["#E8E8E8", *OKABE_ITO][: len(labels.names)]):
        palette[i] = np.round(255 * np.array(colors.to_rgb(hue)))
    return palette


def subject_of(
    spec: str, scene: int, workdir: Path | None = None, without_decoder: Path | None = None
) -> Subject:
    """The subject that the command line names.

    Raises:
      ConfigError: for a scene that is not there; others as from `networks.trained`.
    """
    config = configuration.load(spec)
    configuration.check(config)
    classes = config.model.num_classes
    _, module = networks.build(config)
    fine, coarse, variables = true_scores(4, classes), true_scores(16, classes), None
    if workdir:
        variables, _ = networks.trained(config, workdir, module, 3)
        fine = network_scores("decoder", config, module, variables)
    if without_decoder:
        plain = configuration.load(spec, {"model.name": "v3"})
        _, head = networks.build(plain)
        weights, _ = networks.trained(plain, without_decoder, head, 3)
        coarse = network_scores("bilinear", plain, head, weights)
    labels = pipeline.class_labels(config.data, classes)
    source = pipeline.source(config.data, config.eval.split, classes)
    if not 0 <= scene < len(source):
        raise ConfigError(f"--scene={scene}: there are 0 to {len(source) - 1}")
    return Subject(
        source,
        source[scene],
        labels.names,
        palette_of(labels),
        config,
        module,
        variables,
        fine,
        coarse,
    )
