"""Masks in RGB colours: from exact colours to labels."""

from collections.abc import Mapping

import numpy as np

from deeplab_jax.data.labels import RGB
from deeplab_jax.errors import DataError


def labelled(mask: np.ndarray, colors: Mapping[RGB, int], others: int | None, path) -> np.ndarray:
    """The label map [H, W] uint8 of a mask [H, W, 3] uint8 in colours; others get `others`.

    Raises:
      DataError: for other colours if `others` is None, with how many pixels have them.
    """
    keys, packed = pack(np.array(list(colors), np.uint8)), pack(mask)
    order = np.argsort(keys)
    places = np.searchsorted(keys[order], packed).clip(max=len(keys) - 1)
    unknown = keys[order][places] != packed
    if others is None and unknown.any():
        found, counts = np.unique(packed[unknown], return_counts=True)
        shown = ", ".join(f"{unpack(found[i])} ({counts[i]} px)" for i in np.argsort(-counts)[:8])
        raise DataError(
            f"{path}: {len(found)} colours that classes.json does not name: {shown}"
            + (", ..." if len(found) > 8 else "")
            + "; add them there. Many colours of few pixels come from JPEG compression or smoothed "
            "(anti-aliased) edges: export the mask again without"
        )
    labels = np.array(list(colors.values()), np.uint8)[order][places]
    return labels if others is None else np.where(unknown, np.uint8(others), labels)


def pack(colors: np.ndarray) -> np.ndarray:
    """RGB [..., 3] uint8 as one number each, [...] int32."""
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def unpack(color: int) -> RGB:
    """The (red, green, blue) of a packed colour."""
    return int(color) >> 16, int(color) >> 8 & 255, int(color) & 255
