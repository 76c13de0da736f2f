"""What label ids mean: class names and colours."""

import dataclasses

import numpy as np

IGNORE_LABEL = 255

VOC_CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
).split()
SYNTHETIC_CLASSES = "background disk square triangle star polyline mesh twin_a twin_b".split()


@dataclasses.dataclass(frozen=True)
class Labels:
    """Names of the classes, by id, and a colour for every id of a byte.

    Attributes:
      names: class names, background (if there is one) included.
      palette: [256, 3] uint8 RGB; entry 255 is the colour of `ignore_label`.
    """

    names: tuple[str, ...]
    palette: np.ndarray


def voc_palette() -> np.ndarray:
    """The PASCAL VOC colour map [256, 3] uint8: the bits of an id, dealt to R, G and B in turn."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.int64)
    for shift in range(8):
        for channel in range(3):
            palette[:, channel] |= ((ids >> (3 * shift + channel)) & 1) << (7 - shift)
    return palette.astype(np.uint8)


def labels(names, num_classes: int | None = None, palette: np.ndarray | None = None) -> Labels:
    """Labels of `names`, cut or filled up with "class_7" to `num_classes`; None: VOC's colours."""
    names = list(names)
    count = len(names) if num_classes is None else num_classes
    names = names[:count] + [f"class_{i}" for i in range(len(names), count)]
    return Labels(tuple(names), voc_palette() if palette is None else palette)
