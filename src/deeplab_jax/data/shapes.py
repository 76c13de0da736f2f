"""The embedded classification set: windows of the embedded scenes, each around one object.

For pretraining a backbone where there is no ImageNet. No file is needed: an example is a function
of (seed, index). The twins, which only a far beacon tells apart, are left out.
"""

import dataclasses

import numpy as np

from deeplab_jax.data import synthetic
from deeplab_jax.data.labels import SYNTHETIC_CLASSES
from deeplab_jax.data.transforms import resize_bilinear

SIZE = 97
CLASSES = tuple(SYNTHETIC_CLASSES[synthetic.DISK : synthetic.MESH + 1])
WINDOWS = 2  # of a scene; every scene has at least two objects beside the twins
LEAST = 24  # px, half the side of a window around a small object
OUTSIDE, GREY = 120, 128  # px around a scene that windows may show, and their value


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Random-access source of images with a class each.

    Attributes:
      split: "train" (4000 windows) or "val" (1000); their scenes are those of `Synthetic`.
      seed, version: of the scenes.
    """

    split: str = "train"
    seed: int = 0
    version: int = synthetic.VERSION

    def __post_init__(self):
        synthetic.check(self.split, self.version)

    def __len__(self) -> int:
        return WINDOWS * synthetic.SPLITS[self.split]

    def __getitem__(self, index: int) -> dict:
        """{"image" [97, 97, 3] uint8, "label" [1, 1] uint8 (an id of `CLASSES`), "name"}."""
        scene, kind, window = self.window(index)
        around = ((OUTSIDE, OUTSIDE), (OUTSIDE, OUTSIDE), (0, 0))
        image = np.pad(scene.image, around, constant_values=GREY)[window]
        image = resize_bilinear(image, (SIZE, SIZE)) + 0.5
        return {
            "image": image.astype(np.uint8),
            "label": np.array([[kind - synthetic.DISK]], np.uint8),
            "name": f"{self.split}_{index:04d}",
        }

    def window(self, index: int):
        """(the scene, kind of the object, (rows, columns) around it, of the scene padded by
        `OUTSIDE`)."""
        number, which = divmod(int(index), WINDOWS)
        scene = synthetic.scene(self.version, self.seed, self.split, number)
        rng = np.random.default_rng((1, self.version, self.seed, number))
        kind, place, reach = scene.objects[rng.permutation(len(scene.objects))[which]]
        half = round(max(1.2 * reach, LEAST))
        starts = (OUTSIDE + round(c) - half for c in place)
        return scene, kind, tuple(slice(start, start + 2 * half + 1) for start in starts)
