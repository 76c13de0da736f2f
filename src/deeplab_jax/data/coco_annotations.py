"""COCO's object annotations as label maps.

An object is a dict of an annotations file (cocodataset.org, "Data format"):

    {"id": 7, "category_id": 18, "iscrowd": 0, "segmentation": ...}

where "segmentation" is a list of polygons [x0, y0, x1, y1, ...] in px, or run lengths down the
columns, {"size": [height, width], "counts": [0 run, 1 run, ...] or the compressed string}.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deeplab_jax.errors import ConfigError, DataError


def mask_of(
    annotations: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    labels: Mapping[int, int],
    ignore_label: int,
) -> np.ndarray:
    """The label map [H, W] uint8 of one image's objects; where none is, it is 0.

    Where objects overlap the one of fewer pixels lies on top, of two alike the later. Crowds
    (`iscrowd`) are void, below all objects: their region is coarse, the objects in it are not.

    Args:
      annotations: of one image, in the file's order.
      size: (height, width) of the image.
      labels: {category id: label} of all categories that the annotations have.
      ignore_label: the label of crowds.

    Raises:
      DataError: for an unknown category or a shape that is none; names the annotation.
      ConfigError: without pycocotools.
    """
    objects = []
    for annotation in annotations:
        category = annotation.get("category_id")
        if category not in labels:
            known = ", ".join(map(str, list(labels)[:12]))
            raise DataError(
                f"{_name(annotation)}: category_id {category} is not among the categories "
                f"({known}{', ...' if len(labels) > 12 else ''}); add it there or drop the object"
            )
        crowd = bool(annotation.get("iscrowd", 0))
        shape = _shape(annotation, size)
        objects.append((not crowd, -np.count_nonzero(shape), shape, labels[category]))
    out = np.zeros(size, np.uint8)
    for is_object, _, shape, label in sorted(objects, key=lambda item: item[:2]):
        out[shape] = label if is_object else ignore_label
    return out


def _shape(annotation: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Where the object is, [H, W] bool."""
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise ConfigError(
            "COCO's polygons and run lengths need pycocotools: pip install 'deeplab_jax[coco]'"
        ) from error
    given = annotation.get("segmentation")
    if isinstance(given, Mapping):
        _check_runs(annotation, given, size)
        try:
            packed = coco.frPyObjects(given, *size) if isinstance(given["counts"], list) else given
            return coco.decode(dict(packed)) > 0
        except Exception as error:  # what pycocotools raises has no end
            raise DataError(f"{_name(annotation)}: run lengths cannot be read ({error})") from error
    if not isinstance(given, list) or not given:
        raise DataError(f"{_name(annotation)}: no segmentation (polygons or run lengths)")
    polygons = [_polygon(annotation, points, size) for points in given]
    return coco.decode(coco.merge(coco.frPyObjects(polygons, *size))) > 0


def _check_runs(annotation: Mapping[str, Any], given: Mapping[str, Any], size) -> None:
    if given.get("size") not in (list(size), tuple(size)) or "counts" not in given:
        raise DataError(
            f"{_name(annotation)}: run lengths {str(given)[:60]} in an image of size {list(size)} "
            "(height, width)"
        )
    runs = given["counts"]
    if not isinstance(runs, list):
        return
    if not all(isinstance(n, int) and n >= 0 for n in runs):
        raise DataError(f"{_name(annotation)}: run lengths must be whole numbers from 0")
    if sum(runs) != size[0] * size[1]:
        raise DataError(
            f"{_name(annotation)}: run lengths add up to {sum(runs)}, the image has "
            f"{size[0] * size[1]} pixels"
        )


def _polygon(annotation: Mapping[str, Any], points: Any, size: tuple[int, int]) -> list[float]:
    """The polygon, if it is one."""
    numbers = isinstance(points, list) and all(isinstance(n, (int, float)) for n in points)
    if not numbers or len(points) < 6 or len(points) % 2 or not all(abs(n) < 1e9 for n in points):
        raise DataError(
            f"{_name(annotation)}: a polygon is a list x0, y0, x1, y1, ... of at least 3 points, "
            f"not {str(points)[:60]}"
        )
    height, width = size
    # A little over the edge is common; far out is another image's polygon, or another unit's.
    far = [(x, y) for x, y in zip(points[::2], points[1::2]) if not _near(x, width, y, height)]
    if far:
        raise DataError(
            f"{_name(annotation)}: point {far[0]} lies far outside the {width}x{height} image"
        )
    return points


def _near(x: float, width: int, y: float, height: int) -> bool:
    return -width <= x <= 2 * width and -height <= y <= 2 * height


def _name(annotation: Mapping[str, Any]) -> str:
    return f"annotation {annotation.get('id')} of image {annotation.get('image_id')}"
