"""A trained network as one file that runs without this package: uint8 images in, labels out."""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import max_dim, min_dim

from deeplab_jax import report, runtime
from deeplab_jax import saved_model as tensorflow
from deeplab_jax.config import PLATFORMS
from deeplab_jax.data.labels import FILE, Labels
from deeplab_jax.data.synthetic import Synthetic
from deeplab_jax.data.transforms import normalization as mean_and_std
from deeplab_jax.data.transforms import resize_bilinear
from deeplab_jax.errors import ConfigError, NumericsError
from deeplab_jax.models.folding import fold_batch_norm
from deeplab_jax.predict import label_maps, probability_maps
from deeplab_jax.predict import probabilities as see

MODEL, PARITY, CARD = "model.stablehlo", "parity.json", "README.md"
SAVED_MODEL = "saved_model"
NEAR_TIE = 1e-3  # two classes whose probabilities are as near may change places by rounding
PARITY_SIZES = ((513, 513), (375, 500), (97, 145))


def export(
    module: nn.Module,
    variables: Any,
    folder: Path,
    labels: Labels,
    *,
    normalization: str,
    align_corners: bool,
    crop_size: Sequence[int] | None = None,
    channels: int = 3,
    probabilities: bool = False,
    saved_model: bool = False,
    platforms: Sequence[str] = PLATFORMS,
    origin: str = "",
    sizes: Sequence[tuple[int, int]] = PARITY_SIZES,
    photographs: Sequence[np.ndarray] = (),
) -> dict[str, Any]:
    """Writes model.stablehlo, labels.json, parity.json and README.md into `folder`.

    The file is a program of `jax.export` that holds the weights: images [b, h, w, C] uint8 of any
    batch, height and width → labels [b, h, w] uint8, with
    `probabilities` {"labels", "probabilities" [b, h, w, classes] float32}. Padding, normalization
    and upsampling are inside; batch norm is folded.

    Nothing is written unless the serialised program, read again, agrees with the live network at
    several sizes and a batch of three: every pixel has the same label, save near-ties.

    Args:
      module, variables: the network at the output stride to deploy at.
      folder: created if need be; files of an earlier export are replaced.
      labels: names and colours.
      normalization, align_corners: of `predict.label_maps`.
      crop_size: smaller images are padded to this with the mean pixel, as in evaluation.
      channels: of the images.
      probabilities: give them, too; 4 bytes a pixel and class.
      saved_model: write TensorFlow's SavedModel, too, into the folder saved_model.
      platforms: those that the one file runs on.
      origin: where the weights came from, for README.md.
      sizes: (height, width) of the embedded scenes that it is checked with.
      photographs: further images [H, W, C] uint8 to check it with, at their own sizes.

    Returns:
      The content of parity.json.

    Raises:
      ConfigError: without the platform at hand, or for a network that must know its images' size.
      NumericsError: if the program, or the SavedModel, disagrees with the live network.
    """
    here = jax.export.default_export_platform()
    if here not in platforms:
        raise ConfigError(f"export.platforms={tuple(platforms)} lacks {here}, where it is checked")
    variables = fold_batch_norm(module, variables)
    options = {"normalization": normalization, "align_corners": align_corners}
    program = _program(module, variables, options, crop_size, probabilities)
    images = jax.ShapeDtypeStruct(
        (*jax.export.symbolic_shape("b, h, w"), channels), jnp.dtype("uint8")
    )
    try:
        made = jax.export.export(jax.jit(program), platforms=tuple(platforms))(images)
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.InconclusiveDimensionOperation,
    ) as error:
        raise ConfigError(
            "this network cannot be exported for images of any size: what it does depends on their "
            "size. A remedy may be a predict.crop_size of 64 k + 1, not below "
            "model.image_pooling_crop_size; for model.input_scales there is none. "
            f"({str(error).splitlines()[0]})"
        ) from error
    content = bytes(made.serialize())
    read = jax.export.deserialize(bytearray(content))

    live = partial(see, module, variables, crop_size=crop_size, **options)

    def checked(answer) -> dict[str, Any]:
        found = parity(answer, live, channels, sizes, photographs)
        if not found["agrees"]:
            raise NumericsError(
                f"what was exported disagrees with the network: {found['cases']}; it was not kept. "
                "Please report this with the configuration"
            )
        return found

    found = checked(jax.jit(read.call)) | {
        "platforms": list(platforms),
        "checked_on": jax.default_backend(),
        "jax": jax.__version__,
        "bytes": len(content),
    }
    if saved_model:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            made = Path(temporary) / SAVED_MODEL
            found["saved_model"] = checked(tensorflow.write(read, made))["cases"]
            shutil.rmtree(folder / SAVED_MODEL, ignore_errors=True)
            made.rename(folder / SAVED_MODEL)
    runtime.write_whole(folder / MODEL, content)
    runtime.write_whole(folder / FILE, labels.to_json())
    runtime.write_whole(folder / PARITY, json.dumps(found, indent=1) + "\n")
    runtime.write_whole(folder / CARD, _card(labels, found, origin, channels, probabilities))
    return found


def _program(module, variables, options, crop_size, probabilities) -> Callable:
    """images [b, h, w, C] uint8 → what `export` says, of symbolic sizes."""

    def program(images):
        _, height, width, channels = images.shape
        size = canvas_size((height, width), crop_size)
        # By gathering, as JAX cannot always tell that the canvas is no smaller than the image.
        inside = (jnp.arange(size[0]) < height)[:, None] & (jnp.arange(size[1]) < width)
        pad_value = jnp.asarray(mean_and_std(options["normalization"], channels)[0])
        padded = jnp.where(inside[..., None], _first(images, size).astype(jnp.float32), pad_value)
        if not probabilities:
            return _first(label_maps(module, variables, padded, **options), (height, width))
        maps = _first(probability_maps(module, variables, padded, **options), (height, width))
        answer = jnp.argmax(maps, axis=-1)
        return {"labels": answer.astype(jnp.uint8), "probabilities": maps}

    return program


def _first(maps: jax.Array, size) -> jax.Array:
    """[b, H, W, ...] → its first (height, width); rows and columns past the last repeat it."""
    rows, columns = map(jnp.arange, size)
    return jnp.take(jnp.take(maps, rows, axis=1, mode="clip"), columns, axis=2, mode="clip")


def canvas_size(size, crop_size: Sequence[int] | None) -> tuple:
    """`pipeline.padded_size` of (height, width), integers or symbols, without a branch."""
    return tuple(_side(n, crop) for n, crop in zip(size, crop_size or (None, None)))


def _side(n, crop: int | None):
    if crop is None:
        return 64 * max_dim(-((1 - n) // 64), 0) + 1
    # What is on the grid of 64 k + 1 but fits in the crop must not win: there n becomes n - crop.
    longer = n - crop + crop * min_dim(1, max_dim(0, n - crop))
    # Both are multiples of `step`, plus 1: outside of the maximum that is known to divide.
    step = math.gcd(crop - 1, 64)
    return step * max_dim((crop - 1) // step, 64 // step * -((1 - longer) // 64)) + 1


def parity(
    exported: Callable,
    live: Callable,
    channels: int,
    sizes: Sequence[tuple[int, int]] = PARITY_SIZES,
    photographs: Sequence[np.ndarray] = (),
) -> dict[str, Any]:
    """Compares an exported program with the network, on scenes of several sizes and photographs.

    Args:
      exported: images [b, h, w, C] uint8 → labels [b, h, w], or a dictionary with them.
      live: an image [h, w, C] uint8 → probabilities [h, w, classes].
      channels: of the network's images.
      sizes: of the scenes; the last also as a batch of three.
      photographs: further images [H, W, C] uint8.

    Returns:
      {"agrees", "near_tie", "cases": [{"images", "size", "pixels", "classes", "different",
      "largest_gap"}]}; a gap is how far apart the network holds the two labels' probabilities.
    """
    scenes = Synthetic("val")
    cases = []
    made = [
        np.stack([_scene(scenes, i, size, channels) for i in range(count)])
        for size, count in (*((size, 1) for size in sizes), (sizes[-1], 3))
    ]
    for images in (*made, *(photograph[None] for photograph in photographs)):
        count, *size, _ = images.shape
        given = exported(images)
        given = np.asarray(given["labels"] if isinstance(given, dict) else given)
        probs = np.stack([live(image) for image in images])
        gap = probs.max(-1) - np.take_along_axis(probs, given[..., None].astype(int), -1)[..., 0]
        cases.append(
            {
                "images": count,
                "size": size,
                "pixels": given.size,
                "classes": len(np.unique(given)),
                "different": int((given != probs.argmax(-1)).sum()),
                "largest_gap": float(gap.max()),
            }
        )
    agrees = all(case["largest_gap"] <= NEAR_TIE for case in cases)
    return {"agrees": agrees, "near_tie": NEAR_TIE, "cases": cases}


def _scene(scenes, index: int, size, channels: int) -> np.ndarray:
    image = resize_bilinear(scenes[index]["image"], size)
    repeats = -(-channels // image.shape[-1])
    return np.tile(image, (1, 1, repeats))[..., :channels].astype(np.uint8)


def _card(labels: Labels, found, origin: str, channels: int, probabilities: bool) -> str:
    pixels = sum(case["pixels"] for case in found["cases"])
    different = sum(case["different"] for case in found["cases"])
    answer = 'segment(images)["labels"]' if probabilities else "segment(images)"
    read = (
        'np.asarray(Image.open("photo.jpg").convert("RGB"))[None]'
        if channels == 3
        else f'np.load("images.npy")  # {channels} channels'
    )
    names = report.text(", ".join(labels.names[:12])) + (", ..." if len(labels.names) > 12 else "")
    return f"""# A segmentation network, exported

{MODEL} takes images [batch, height, width, {channels}] uint8 of any size and gives labels
[batch, height, width]{" and probabilities [batch, height, width, class]" if probabilities else ""}.
Nothing else is to be done to the images.

{len(labels.names)} classes ({FILE}): {names}.
{f"Weights: {origin}." if origin else ""}

`pip install jax flatbuffers numpy pillow`, then

```python
import json
import jax
import numpy as np
from PIL import Image

with open("{MODEL}", "rb") as file:
    segment = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
images = {read}
labels = np.asarray({answer})
classes = json.load(open("{FILE}"))["classes"]
print({{classes[i]["name"]: int((labels == i).sum()) for i in np.unique(labels)}})
```

It runs on {", ".join(found["platforms"])} (the first call of a size compiles), and was made by jax
{found["jax"]}: later versions read it for at least six months. Read back on
{found["checked_on"]} it differed from the network in {different} of {pixels} pixels, all of them
near-ties within {found["near_tie"]:g} in probability ({PARITY}).
"""
