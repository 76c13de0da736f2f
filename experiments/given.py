"""A configuration, weights and photographs that a script of this folder is given."""

import argparse
from typing import Any, NamedTuple

import numpy as np

from deeplab_jax import config as configuration
from deeplab_jax import networks
from deeplab_jax import train as training
from deeplab_jax.data import pipeline


class Given(NamedTuple):
    """What the command line named.

    Attributes:
      config: the configuration.
      module: the network to evaluate.
      variables: its weights.
      examples: {"image", "label"} of the evaluation split, read one after another.
    """

    config: Any
    module: Any
    variables: Any
    examples: Any


def parser(description: str, images: int | None = None) -> argparse.ArgumentParser:
    """With --config, --weights, --root and --images, of which None is all."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--config", required=True, help="FILE.py:preset")
    found.add_argument("--weights", required=True, help="what init_from takes")
    found.add_argument("--root", required=True, help="where the configuration's dataset lies")
    found.add_argument(
        "--images",
        type=int,
        default=images,
        help=f"of the split, evenly spread; default {images or 'all'}",
    )
    return found


def read(arguments: argparse.Namespace) -> Given:
    """What `parser` parsed; errors as of `config.load`, `pipeline.source` and `networks.load`."""
    overrides = {"init_from": arguments.weights, "data.root": arguments.root}
    config = configuration.load(arguments.config, overrides)
    source = pipeline.source(config.data, config.eval.split, config.model.num_classes)
    chosen = np.linspace(0, len(source) - 1, arguments.images or len(source)).astype(int)
    _, module = networks.build(config)
    variables = networks.load(config, training.variable_shapes(module))
    return Given(config, module, variables, (source[i] for i in chosen))
