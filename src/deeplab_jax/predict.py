"""From images to label maps: the one place where logits become labels."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax import crf as fully_connected
from deeplab_jax import ops, tiles
from deeplab_jax.config import OF_FILES
from deeplab_jax.data.pipeline import padded_batch, padded_size
from deeplab_jax.data.transforms import normalization as mean_and_std
from deeplab_jax.data.transforms import resize_bilinear
from deeplab_jax.errors import ConfigError
from deeplab_jax.models.folding import fold_batch_norm


def normalize(images: jax.Array, name: str) -> jax.Array:
    """images [B, H, W, C] in 0..255 → what the network was trained on; see `NORMALIZATIONS`."""
    mean, std = mean_and_std(name, images.shape[-1])
    # One multiply and one add, as the reference: x * (2/255) - 1.
    x = images.astype(jnp.float32) * (1 / std) - mean / std
    if name.endswith("_bgr"):
        x = jnp.concatenate([x[..., 2::-1], x[..., 3:]], axis=-1)
    return x


def label_maps(
    module: nn.Module,
    variables: Any,
    images: jax.Array,
    *,
    normalization: str,
    align_corners: bool,
    eval_scales: Sequence[float] = (1.0,),
    add_flipped_images: bool = False,
    head: str = "logits",
) -> jax.Array:
    """Padded images [B, H, W, C] in 0..255 → labels [B, H, W] uint8 (int32 past 256 classes).

    The logits, not the labels, are upsampled to the image ([V2] Sec. 3.1). With several scales or
    mirrored images the answer is the class of the highest mean probability ([V3] Sec. 4.1).
    The variables may be folded ones (models/folding.py): the answer comes a little faster.
    `head` is which of the network's outputs, where it has several heads.
    """
    options = {"normalization": normalization, "align_corners": align_corners, "head": head}
    if tuple(eval_scales) == (1.0,) and not add_flipped_images:
        return _labels(module, variables, images, **options)
    return _argmax(
        probability_maps(
            module,
            variables,
            images,
            eval_scales=eval_scales,
            add_flipped_images=add_flipped_images,
            **options,
        )
    )


def probability_maps(
    module: nn.Module,
    variables: Any,
    images: jax.Array,
    *,
    normalization: str,
    align_corners: bool,
    eval_scales: Sequence[float] = (1.0,),
    add_flipped_images: bool = False,
    head: str = "logits",
) -> jax.Array:
    """What `label_maps` decides by: [B, H, W, C] float32, the mean over scales and mirrorings."""
    options = {"normalization": normalization, "align_corners": align_corners, "head": head}
    total = 0.0
    for scale in eval_scales:
        # A program a scale, not one of them all: twelve full-size maps would live in that.
        seen = functools.partial(_probabilities, module, variables, scale=scale, **options)
        total = total + seen(images)
        if add_flipped_images:
            total = total + seen(images[:, :, ::-1])[:, :, ::-1]
    return total / (len(eval_scales) * (2 if add_flipped_images else 1))


def refine(
    image: jax.Array,
    probs: jax.Array,
    size: tuple[int, int],
    crf: Mapping[str, Any],
    give: str = "labels",
) -> np.ndarray:
    """What the fully connected CRF makes of an image's probabilities ([V2] Sec. 3.3).

    Args:
      image: [H, W, C] in 0..255, padded at the bottom and right; its first three channels count.
      probs: [H, W, classes].
      size: (h, w) of the image itself.
      crf: keywords of `crf.mean_field`, plain numbers and strings. A method of None is "fast" on a
        CPU, elsewhere "modes".
      give: "labels", [h, w]; "probabilities", [h, w, classes]; "beliefs", the probabilities of
        every iteration, [iterations, h, w, classes].
    """
    # On a grid of 64 px: a folder of images of all sizes compiles a handful of times.
    height, width = (min(-(-n // 64) * 64, whole) for n, whole in zip(size, image.shape))
    mask = (np.arange(height) < size[0])[:, None] & (np.arange(width) < size[1])
    options = crf_options(crf)
    found = _refined(image[:height, :width, :3], probs[:height, :width], mask, options, give)
    inside = np.s_[: size[0], : size[1]]
    return np.asarray(found)[(slice(None), *inside) if give == "beliefs" else inside]


def crf_options(crf: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """`crf`, hashable, with a method that suits the device."""
    method = crf.get("method") or ("fast" if jax.default_backend() == "cpu" else "modes")
    return tuple(sorted((dict(crf) | {"method": method}).items()))


@functools.partial(jax.jit, static_argnames=("options", "give"))
def _refined(image, probs, mask, options, give):
    every = give == "beliefs"
    q = fully_connected.mean_field(image, probs, mask=mask, every=every, **dict(options))
    return _argmax(q) if give == "labels" else q


def freeze(
    module: nn.Module, variables: Any, *, normalization: str, align_corners: bool
) -> Callable[[jax.Array], jax.Array]:
    """Returns `label_maps` of these variables, folded, as a function of the images alone.

    The variables become constants of its programs: XLA lays the kernels out once, not at every
    call, but every program, one a shape of images, takes longer to compile and holds a copy. So
    this is for many images of one shape, and for one scale: each further one would be a copy.

    Args:
      module: from `models.build`.
      variables: {"params", "batch_stats"}, not traced; folded ones or not.
      normalization, align_corners: of `label_maps`.

    Returns:
      A jitted function: images [B, H, W, C] in 0..255 → labels [B, H, W], up to rounding those
      of `label_maps`. Later changes of the variables do not reach it.
    """
    variables = fold_batch_norm(module, variables)
    options = {"normalization": normalization, "align_corners": align_corners}
    return jax.jit(lambda images: label_maps(module, variables, images, **options))


def _argmax(scores):
    """Labels of scores [..., classes], both of JAX or both of NumPy."""
    return scores.argmax(-1).astype(np.uint8 if scores.shape[-1] <= 256 else np.int32)


@functools.partial(jax.jit, static_argnames=("module", "normalization", "align_corners", "head"))
def _labels(module, variables, images, normalization, align_corners, head):
    return _argmax(_logits(module, variables, images, normalization, align_corners, head))


@functools.partial(
    jax.jit, static_argnames=("module", "normalization", "align_corners", "head", "scale")
)
def _probabilities(module, variables, images, normalization, align_corners, head, scale):
    logits = _logits(module, variables, images, normalization, align_corners, head, scale)
    return jax.nn.softmax(logits, axis=-1)


def _logits(module, variables, images, normalization, align_corners, head, scale=1.0):
    """Logits [B, H, W, C] of the images seen at `scale`, at the images' size."""

    def forward(images):
        outputs = module.apply(variables, normalize(images, normalization))
        return outputs[head] if isinstance(outputs, dict) else outputs

    images, size = images.astype(jnp.float32), images.shape[1:3]
    scaled = ops.scaled_size(size, scale, align_corners)
    logits = forward(ops.resize_bilinear(images, scaled, align_corners))
    if scale < 1 and align_corners:
        # The official code's detour: first to the size that logits of the whole image have.
        whole = jax.eval_shape(forward, images).shape[1:3]
        logits = ops.resize_bilinear(logits, whole, align_corners)
    return ops.resize_bilinear(logits, size, align_corners)


class Answer(NamedTuple):
    """What the network says of one image.

    Attributes:
      labels: [H, W] uint8, class ids.
      probabilities: [H, W, classes] float32 that the labels are the highest of, or None.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None = None


def predict(
    module: nn.Module,
    variables: Any,
    image: np.ndarray,
    *,
    raw_ids: np.ndarray | None = None,
    **options: Any,
) -> np.ndarray:
    """Segments one image of any size.

    Args:
      module, variables, image, options: as of `answers`. Keys of `config.predict` that are about
        files (`config.OF_FILES`) are passed over, so that all of it can be given.
      raw_ids: [classes], give these ids (`Labels.first_raw_ids`) instead of the classes' own; None
        or False: do not.

    Returns:
      Class ids [H, W] uint8, or `raw_ids` in their dtype.

    Raises:
      ValueError, ConfigError: as `answers`.
    """
    options = {key: value for key, value in options.items() if key not in OF_FILES}
    (answer,) = answers(module, variables, [image], **options)
    return answer.labels if raw_ids is None or raw_ids is False else raw_ids[answer.labels]


def answers(
    module: nn.Module,
    variables: Any,
    images: Sequence[np.ndarray],
    *,
    batch_size: int = 1,
    with_probabilities: bool = False,
    crop_size: tuple[int, int] | None = None,
    normalization: str = "zero_mean",
    align_corners: bool = True,
    eval_scales: Sequence[float] = (1.0,),
    add_flipped_images: bool = False,
    tile_size: tuple[int, int] | None = None,
    tile_overlap: int = 128,
    resize: int | tuple[int, int] | None = None,
    crf: Mapping[str, Any] | None = None,
) -> list[Answer]:
    """Segments images that the network sees at one size (`seen_size`), in one batch.

    Args:
      module: from `models.build`.
      variables: {"params", "batch_stats"}, folded ones or not.
      images: each [H, W, C] uint8, RGB first.
      batch_size: the network sees at least so many, the last again where there are fewer: one
        program serves them all. Of no matter with tiles.
      with_probabilities: give them, too; with the CRF those after it.
      crop_size: (height, width) to pad to with the mean pixel; a longer side, and with None either,
        is padded to the next 64 k + 1.
      normalization: the one the weights were trained with.
      align_corners: of the logits' upsampling and of scaled images.
      eval_scales: the image is seen at each of these; their probabilities are averaged.
      add_flipped_images: and mirrored at each.
      tile_size: (height, width) of tiles that larger images are seen in, one image after another,
        in little memory (and that of probabilities asked for); None sees any image whole. See
        `tiles.blended`.
      tile_overlap: px that neighbouring tiles share.
      resize: see the image at this size, (height, width), or with its longer side so long; its
        probabilities are resized back.
      crf: refine the answer, with these keywords of `crf.mean_field`; None or False: do not.

    Returns:
      An answer an image, in their order.

    Raises:
      ValueError: if an image is not [H, W, C] uint8, or they are seen at different sizes.
      ConfigError: for a CRF over tiles, or tiles that overlap by half or more.
    """
    for image in images:
        _check(image)
    options = {
        "normalization": normalization,
        "align_corners": align_corners,
        "eval_scales": eval_scales,
        "add_flipped_images": add_flipped_images,
    }
    if any(needs_tiles(image.shape[:2], tile_size) for image in images):
        if crf or resize is not None:
            raise ConfigError("tiles go neither with the CRF nor with resizing: tile_size=None")
        see = functools.partial(probabilities, module, variables, **options)
        tiled = [tiles.blended(image, see, tile_size, tile_overlap) for image in images]
        sizes = [image.shape[:2] for image in images]
        return [_joined(*both, with_probabilities) for both in zip(tiled, sizes)]
    seen = images if resize is None else [_resized(image, resize) for image in images]
    padded = _batch(seen, crop_size, normalization, batch_size)
    if not (with_probabilities or crf or resize is not None):
        found = np.asarray(label_maps(module, variables, padded, **options))
        return [Answer(_cut(labels, image)) for labels, image in zip(found, images)]
    found = []
    maps = probability_maps(module, variables, padded, **options)
    for i, (image, probs) in enumerate(zip(images, maps)):
        size, whole = image.shape[:2], padded[i]
        if resize is not None:
            probs = ops.resize_bilinear(_cut(probs, seen[i])[None], size, align_corners)[0]
            whole = image
        if crf:
            probs = refine(whole, probs, size, crf, "probabilities")
        probs = _cut(np.asarray(probs), image)
        found.append(Answer(_argmax(probs), probs if with_probabilities else None))
    return found


def needs_tiles(size: tuple[int, int], tile_size: tuple[int, int] | None) -> bool:
    """Whether an image of this (height, width) is seen in tiles."""
    return tile_size is not None and any(n > t for n, t in zip(size, tile_size))


def seen_size(
    size: tuple[int, int],
    crop_size: tuple[int, int] | None,
    resize: int | tuple[int, int] | None,
) -> tuple[int, int]:
    """The (height, width) that the network sees an image of `size` at, with padding; one program
    is compiled for each."""
    return padded_size(size if resize is None else _resized_size(size, resize), crop_size)


def _joined(
    pieces: Iterable[tuple[tiles.Place, np.ndarray]],
    size: tuple[int, int],
    with_probabilities: bool,
) -> Answer:
    labels, whole = np.empty(size, np.uint8), None
    for place, probs in pieces:
        labels[place] = _argmax(probs)
        if with_probabilities:
            if whole is None:
                whole = np.empty((*size, probs.shape[-1]), probs.dtype)
            whole[place] = probs
    return Answer(labels, whole)


def _cut(padded, image: np.ndarray):
    """[H, W, ...] → its upper left, of the size of `image`."""
    return padded[: image.shape[0], : image.shape[1]]


def probabilities(
    module: nn.Module,
    variables: Any,
    image: np.ndarray,
    *,
    crop_size: tuple[int, int] | None = None,
    normalization: str = "zero_mean",
    **options: Any,
) -> np.ndarray:
    """One image [H, W, C] uint8 → [H, W, classes] float32, as `predict` decides by before a CRF.

    `options` are those of `probability_maps`; errors are `predict`'s.
    """
    _check(image)
    padded = _batch([image], crop_size, normalization)
    maps = probability_maps(module, variables, padded, normalization=normalization, **options)
    return _cut(np.asarray(maps[0]), image)  # on the host: a slice of JAX compiles for each size


def _check(image: np.ndarray) -> None:
    if image.ndim != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be [H, W, C] uint8, not {image.dtype} {image.shape}")


def _batch(images: Sequence[np.ndarray], crop_size, normalization, batch_size: int = 1):
    """[B, H, W, C] float32 of images that are seen at one size, padded with the mean pixel."""
    size, *others = {padded_size(image.shape[:2], crop_size) for image in images}
    if others:
        raise ValueError(f"images of one batch are seen at one size, not at {size} and {others}")
    pad_value = mean_and_std(normalization, images[0].shape[-1])[0]
    return padded_batch(images, size, pad_value, max(batch_size, len(images)))


def _resized(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """[H, W, C] → float32 of this (height, width), or with its longer side so long."""
    return resize_bilinear(image, _resized_size(image.shape[:2], size))


def _resized_size(old: tuple[int, int], size: int | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(size, int):
        return tuple(size)
    scale = size / max(old)
    return tuple(max(1, round(n * scale)) for n in old)
