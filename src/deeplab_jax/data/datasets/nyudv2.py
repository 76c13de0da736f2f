"""NYU Depth v2, 40 classes: RGB, depth and HHA of indoor scenes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from deeplab_jax.data import hha
from deeplab_jax.data.datasets import prepared
from deeplab_jax.data.datasets.dataset import NOTHING, Dataset, Files, existing
from deeplab_jax.errors import ConfigError, DataError

# Of the toolbox's camera_params.m, which counts pixels from 1. Depth is that seen by this camera.
CAMERA = hha.Camera(fx=518.857901, fy=519.469611, cx=324.582449, cy=252.736166)
DEPTHS = (0.5, 10.0)  # m, at 0 and 255, in logarithmic steps


def _nyudv2(root: Path, split: str) -> Files:
    """nyu_depth_v2_labeled.mat, splits.mat and classMapping40.mat, as images and masks."""
    variable = {"train": "trainNdxs", "test": "testNdxs"}.get(split)
    if variable is None:
        return NOTHING
    numbers = prepared.read_mat(existing(root / "splits.mat"), variable)
    names = [f"{int(number):04d}" for number in np.atleast_1d(numbers)]
    mapping = root / "classMapping40.mat"
    table = np.concatenate([[0], prepared.read_mat(existing(mapping), "mapClass")])

    def mask(read) -> np.ndarray:
        return prepared.translated(read("labels"), table, root / "nyu_depth_v2_labeled.mat")

    return Files(
        _written(root, "images", names, lambda read: read("images")),
        _written(root, "labels", names, mask),
    )


def _written(root: Path, kind: str, names: list[str], make: Callable) -> list[Path]:
    """The files prepared/nyudv2/KIND/NAME.png, each `make` of its `_Scene`."""
    path = root / "nyu_depth_v2_labeled.mat"
    targets = [prepared.folder(root, "nyudv2") / kind / f"{name}.png" for name in names]
    if not all(target.is_file() for target in targets):
        with _opened(path) as content:
            prepared.write(
                targets,
                lambda index: make(_Scene(content, path, int(names[index]) - 1)),
                f"{kind} of NYUDv2",
            )
    return targets


def _opened(path: Path):
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(
            f"{path} is an HDF5 file and needs h5py: pip install 'deeplab_jax[nyudv2]'"
        ) from error
    try:
        return h5py.File(existing(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path}: damaged or truncated ({error}); download it again") from error


class _Scene:
    """One scene of the open HDF5 file, whose arrays are stored (scene, [channel], column, row)."""

    def __init__(self, content, path: Path, index: int):
        self.content, self.path, self.index = content, path, index

    def __call__(self, variable: str) -> np.ndarray:
        """[H, W] or [H, W, 3] as stored."""
        try:
            return np.ascontiguousarray(self.content[variable][self.index].T)
        except (KeyError, IndexError, ValueError, OSError) as error:
            raise DataError(
                f"{self.path}: no {variable} of scene {self.index + 1} ({error}); download it again"
            ) from error


def _depth(read) -> np.ndarray:
    near, far = np.log(DEPTHS)
    logarithm = np.log(np.clip(read("depths"), *DEPTHS))
    return np.rint(255 * (logarithm - near) / (far - near)).astype(np.uint8)


def _hha(read) -> np.ndarray:
    return hha.encode(read("depths").astype(float), CAMERA, missing=read("rawDepths") == 0)


def _with(kind: str, make: Callable) -> Callable[[Path, Files], Files]:
    """RGB, and behind it the channels that `make` makes."""

    def channels(root: Path, found: Files) -> Files:
        names = [path.stem for path in found.images]
        return found._replace(extras={kind: _written(root, kind, names, make)})

    return channels


def _hha_alone(root: Path, found: Files) -> Files:
    with_hha = _with("hha", _hha)(root, found)
    return found._replace(images=with_hha.extras["hha"])


NYUDV2 = Dataset(
    names=(
        *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window"),
        *("bookshelf", "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser"),
        *("pillow", "mirror", "floor mat", "clothes", "ceiling", "books", "refridgerator"),
        *("television", "paper", "towel", "shower curtain", "box", "whiteboard", "person"),
        *("night stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure"),
        *("otherfurniture", "otherprop"),
    ),
    splits={"train": 795, "test": 654},
    find=_nyudv2,
    where=(
        "nyu_depth_v2_labeled.mat (horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2), splits.mat "
        "(horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup) and classMapping40.mat (S. Gupta's 40 "
        "classes, github.com/ankurhanda/nyuv2-meta-data); data.root holds these three"
    ),
    raw_ids=tuple(range(1, 41)),  # 0 is unlabelled
    channels={
        "rgb_depth": (("depth",), _with("depth", _depth)),
        "rgb_hha": (("hha",), _with("hha", _hha)),
        "hha": ((), _hha_alone),
    },
)
