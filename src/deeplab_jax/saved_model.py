"""An exported program as TensorFlow's SavedModel: `pip install 'deeplab_jax[tensorflow]'`."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from deeplab_jax.errors import ConfigError


def write(program: jax.export.Exported, folder: Path) -> Callable:
    """Writes `folder`, and returns what it holds when it is read again.

    Args:
      program: images [b, h, w, C] uint8 → labels, or a dictionary; lowered for the CPU at least.
      folder: for the SavedModel; its signature "serving_default" takes "images".

    Returns:
      images → labels [b, h, w], or {"labels", "probabilities"}, NumPy arrays.

    Raises:
      ConfigError: without TensorFlow.
    """
    try:
        import tensorflow as tf
        from jax.experimental import jax2tf
    except ImportError as error:
        raise ConfigError(
            "export.saved_model needs TensorFlow: pip install 'deeplab_jax[tensorflow]'"
        ) from error
    channels = program.in_avals[0].shape[-1]
    convert = jax2tf.convert(
        lambda images: program.call(images),
        polymorphic_shapes=[f"b, h, w, {channels}"],
        native_serialization_platforms=program.platforms,
    )

    def answer(images):
        found = convert(images)
        return found if isinstance(found, dict) else {"labels": found}

    module = tf.Module()
    images = tf.TensorSpec([None, None, None, channels], tf.uint8, name="images")
    module.serve = tf.function(answer, input_signature=[images], autograph=False)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    read = tf.saved_model.load(str(folder)).signatures["serving_default"]

    def call(images: np.ndarray):
        return {key: value.numpy() for key, value in read(images=tf.constant(images)).items()}

    return call
