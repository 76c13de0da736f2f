"""The crops of a batch made on the device, from what the host only cut out."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp


def crops(
    windows: Mapping[str, jax.Array], pad_value: Sequence[float], ignore_label: int
) -> dict[str, jax.Array]:
    """Scales, pads and mirrors: what `Augment.batch` of data/transforms.py does on the host.

    Args:
      windows: of `Augment.windows`.
      pad_value: [C] image value outside the image.
      ignore_label: label value there.

    Returns:
      {"image" [B, h, w, C] float32, "label" [B, h, w] int32, ...}.
    """
    inside = (windows["rows"] >= 0)[:, :, None] & (windows["columns"] >= 0)[:, None, :]
    image = jax.vmap(_bilinear)(windows["image"], windows["rows"], windows["columns"])
    out = {"image": jnp.where(inside[..., None], image, jnp.asarray(pad_value, jnp.float32))}
    nearest = windows["nearest_rows"], windows["nearest_columns"]
    for key, label in windows.items():
        if key.startswith("label"):
            label = jax.vmap(_taken)(label, *nearest).astype(jnp.int32)
            out[key] = jnp.where(inside, label, jnp.int32(ignore_label))
    return out


def _taken(array, rows, columns):
    return array.at[rows].get(mode="clip").at[:, columns].get(mode="clip")


def _bilinear(image, rows, columns):
    """image [H, W, C], rows [h] and columns [w] float32 → [h, w, C] float32."""
    low = jnp.floor(rows).astype(jnp.int32), jnp.floor(columns).astype(jnp.int32)
    y = (rows - jnp.floor(rows))[:, None, None]
    x = (columns - jnp.floor(columns))[:, None]

    def line(offset):
        top, below = (
            _taken(image, low[0] + down, low[1] + offset).astype(jnp.float32) for down in (0, 1)
        )
        return top + (below - top) * y

    left, right = line(0), line(1)
    return left + (right - left) * x
