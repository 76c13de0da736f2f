"""How many classes a user's own data have, and what they are called where there are no data.

From classes.json, COCO's categories, or the masks; from what training left beside a checkpoint.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax import checkpoint, runtime
from deeplab_jax.data import colors as rgb
from deeplab_jax.data import folder, image_files, pipeline
from deeplab_jax.data.labels import FILE, Labels, labels, read
from deeplab_jax.errors import ConfigError, DataError

MOST = 256  # classes: labels are bytes


def fill_in(config, mode: str, workdir: Path) -> None:
    """Sets the number of classes in `config`, where it is left to a user's own data.

    Raises:
      ConfigError: if they do not tell it.
      DataError: as `count_classes`.
    """
    data, classes = config.data, config.model.num_classes
    if data.name not in pipeline.OWN or mode in ("import", "count"):
        return
    if mode == "check_data" and data.label_map is None and pipeline.named_labels(data) is None:
        classes = count_classes(data, classes, workdir)
    elif classes is None:
        kept = kept_labels(config, workdir) if mode in ("predict", "export") else None
        classes = len((kept or pipeline.class_labels(data, None)).names)
    config.model.num_classes = classes


def kept_labels(config, workdir: Path) -> Labels | None:
    """What training left beside the weights, in the workdir or else in `init_from`; None: nothing.

    Raises:
      ConfigError: if it names another number of classes than the configuration.
    """
    trained = checkpoint.latest_step(workdir) is not None
    path = (workdir if trained else Path(config.init_from).expanduser()) / FILE
    if not (trained or config.init_from) or not path.is_file():
        return None
    kept, classes = read(path, config.data.ignore_label), config.model.num_classes
    if classes not in (None, len(kept.names)):
        raise ConfigError(
            f"{path} names {len(kept.names)} classes, model.num_classes is {classes}: set "
            f"--config.model.num_classes={len(kept.names)}"
        )
    return kept


def labels_of(config, workdir: Path) -> Labels:
    """What a network's answers mean: as training left it, as the data say, or as is usual.

    Raises:
      ConfigError, DataError: as `kept_labels` and `pipeline.class_labels`.
    """
    if kept := kept_labels(config, workdir):
        return kept
    if config.data.name in pipeline.OWN and not config.data.root:
        return pipeline.usual_labels(config.model.num_classes)
    return pipeline.class_labels(config.data, config.model.num_classes)


def count_classes(data: Mapping[str, Any], num_classes: int | None, workdir: Path) -> int:
    """How many classes a user's folder without classes.json has, by its masks.

    Raises:
      DataError: if the masks have colours, or ids with gaps: what these are, only the user knows.
        A proposal for classes.json has been said, and written to WORKDIR/check_data.
    """
    root, ignore_label = Path(data["root"]), data["ignore_label"]
    masks = folder.source(root, "all", labels((), MOST)).masks
    if num_classes is not None and not propose(masks[:1], ignore_label).colors:
        return num_classes
    found = propose(masks, ignore_label)
    if ignore_label < len(found.names) and found.label_map is not None:
        raise ConfigError(
            f"data.ignore_label={ignore_label} would be the label of a class, too: leave it at 255 "
            f'and say in classes.json that the id is void: "ignore": {{"ids": [{ignore_label}]}}'
        )
    path = workdir / "check_data" / "classes.json"
    runtime.write_whole(path, found.to_json())
    if found.label_map is None and not found.colors:
        runtime.say(f"to name the classes, write the names into {path} and copy it to {root}\n")
        return max(1, len(found.names))
    runtime.say(f"{path}:\n{found.to_json()}")
    what = "ids with gaps between them"
    if found.colors:
        what = "RGB colours"
    if len(found.names) == MOST:
        what += ", so many that JPEG compression or smoothed edges may have made them"
    raise DataError(
        f"{root / 'masks'}: masks of {what}. Name the classes in the proposal above, move what is "
        f'no class to "ignore" (data/labels.py explains it), copy it to {root} and run this again'
    )


def propose(masks: Sequence[Path], ignore_label: int) -> Labels:
    """Labels for the colours in `masks`, the most frequent first, or else for the ids.

    Masks that cannot be read are left out. A void is known by `ignore_label` alone, and taken for
    a class where it is one of two ids: 0 and 255 are background and object, not one class.
    """
    colors, ids = Counter(), Counter()
    with runtime.Progress(len(masks), "look at the masks") as progress:
        for path in masks:
            progress.advance()
            try:
                mask = image_files.read_mask(path, in_colors=True)
            except DataError:
                continue  # `check` names it, once the classes are known
            colored = mask.ndim == 3
            found = np.unique(rgb.pack(mask) if colored else mask, return_counts=True)
            (colors if colored else ids).update(dict(zip(*(x.tolist() for x in found))))
    if colors:
        found = [rgb.unpack(color) for color, _ in colors.most_common(MOST)]
        return labels([f"color_{i}" for i in range(len(found))], ignore_label=ignore_label).colored(
            {color: i for i, color in enumerate(found)}
        )
    void = set() if ids.keys() == {0, ignore_label} else {ignore_label}
    classes = sorted(ids.keys() - void)[:MOST]
    found = labels([f"id_{i}" for i in classes], ignore_label=ignore_label)
    contiguous = classes == list(range(len(classes)))
    return found if contiguous else found.mapped({raw: i for i, raw in enumerate(classes)})
