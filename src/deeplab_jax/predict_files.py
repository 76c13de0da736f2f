"""Images on disk → label images on disk: what `--mode=predict` writes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from deeplab_jax import pictures, runtime
from deeplab_jax.config import TILE_SIZE
from deeplab_jax.data import files
from deeplab_jax.data.labels import FILE, Labels
from deeplab_jax.errors import ConfigError
from deeplab_jax.predict import predict

LEGEND = "legend.png"
WHOLE = 25_000_000  # px; larger images are seen in tiles


def predict_files(
    module: nn.Module,
    variables: Any,
    targets: Mapping[Path, tuple[Path, Path]],
    output: Path,
    labels: Labels,
    options: Mapping[str, Any],
) -> None:
    """Writes legend.png, labels.json and of each image an index PNG and an overlay.

    Args:
      module, variables: as of `predict.predict`.
      targets: of `targets`.
      output: the folder.
      labels: names, colours and raw ids.
      options: keywords of `predict.predict`; `raw_ids` True writes the dataset's own ids.

    Raises:
      DataError: for an image that cannot be read, or classes without a raw id.
    """
    raw_ids = labels.first_raw_ids if options["raw_ids"] else None
    options = dict(options) | {"raw_ids": None}  # the overlay takes the classes' own
    runtime.write_whole(output / LEGEND, pictures.png(pictures.legend(labels)))
    runtime.write_whole(output / FILE, labels.to_json())
    with runtime.Progress(len(targets), "predict") as progress:
        for path, (index_file, overlay_file) in targets.items():
            image = files.read_image(path)
            pred = predict(module, variables, image, **(options | _tiling(path, image, options)))
            index = pictures.indexed(pred, labels.palette) if raw_ids is None else raw_ids[pred]
            runtime.write_whole(index_file, pictures.png(index))
            drawn = pictures.overlay(image, pred, labels.palette)
            runtime.write_whole(overlay_file, pictures.png(drawn))
            progress.advance()


def _tiling(path: Path, image: np.ndarray, options: Mapping[str, Any]) -> dict[str, Any]:
    """Tiles for an image that would take too much memory whole, unless something else is wanted."""
    height, width, _ = image.shape
    if height * width <= WHOLE or any(options[key] for key in ("tile_size", "resize", "crf")):
        return {}
    runtime.say(
        f"{path}: {width}x{height} px, seen in tiles of {TILE_SIZE[0]} px, to which its image "
        "pooling is confined; predict.tile_size chooses others"
    )
    return {"tile_size": TILE_SIZE}


def targets(paths: Sequence[Path], output: Path) -> dict[Path, tuple[Path, Path]]:
    """{image: (label file, overlay file)} in the folder `output`: no two alike.

    Raises:
      ConfigError: if one of them is an input.
    """
    out, taken = {}, set()
    for path in paths:
        name, count = path.stem, 1
        while name in taken:  # a.jpg and a.png, or a.jpg of two folders
            count += 1
            name = f"{path.stem}_{count}"
        taken.add(name)
        out[path] = (output / "labels" / f"{name}.png", output / "overlays" / f"{name}.png")
    written = {file.resolve() for pair in out.values() for file in pair}
    written |= {(output / name).resolve() for name in (LEGEND, FILE)}
    for path in paths:
        if path.resolve() in written:
            raise ConfigError(f"--output={output} would overwrite the input {path}; choose another")
    return out
