"""Images on disk → what the network says of them on disk: what `--mode=predict` writes."""

import functools
import io
import math
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from deeplab_jax import archive as archives
from deeplab_jax import pictures, runtime
from deeplab_jax.config import TILE_SIZE
from deeplab_jax.data import files, image_files, pipeline
from deeplab_jax.data.labels import FILE, Labels
from deeplab_jax.errors import ConfigError
from deeplab_jax.predict import Answer, answers, needs_tiles, seen_size

LEGEND = "legend.png"
WHOLE = 25_000_000  # px; larger images are seen in tiles
THREADS = 4  # that decode and encode while the network works, of so many images at a time


def targets(
    found: Mapping[Path, Path], output: Path, outputs: Sequence[str]
) -> dict[Path, dict[str, Path]]:
    """{image: {output: file}} in folders of the folder `output`: no two alike.

    Images keep their sub-folders. Names keep all that prints; other characters become "_".

    Args:
      found: of `inputs.find_images`.
      output: the folder.
      outputs: some of `config.OUTPUTS`.

    Raises:
      ConfigError: if one of them is an input.
    """
    out, taken = {}, set()
    for path, place in found.items():
        parts = [_printable(part) for part in place.with_suffix("").parts if part != ".."]
        name, count = Path(*parts), 1
        while _folded(name) in taken:  # a.jpg and a.png
            count += 1
            name = Path(*parts[:-1], f"{parts[-1]}_{count}")
        taken.add(_folded(name))
        out[path] = {
            kind: output / kind / f"{name}.{'npz' if kind == 'probabilities' else 'png'}"
            for kind in outputs
        }
    written = {file.resolve() for kinds in out.values() for file in kinds.values()}
    written |= {(output / name).resolve() for name in (LEGEND, FILE)}
    for path in found:
        if path.resolve() in written:
            raise ConfigError(f"--output={output} would overwrite the input {path}; choose another")
    return out


def _folded(name: Path) -> str:
    """What names of one file have in common on disks that know no case, or one spelling of é."""
    return unicodedata.normalize("NFC", str(name)).casefold()


def _printable(part: str) -> str:
    return "".join(c if c.isprintable() else "_" for c in part)


def predict_files(
    module: nn.Module,
    variables: Any,
    targets: Mapping[Path, Mapping[str, Path]],
    output: Path,
    labels: Labels,
    options: Mapping[str, Any],
    *,
    batch_size: int = 1,
    archive: str | None = None,
) -> None:
    """Writes legend.png, labels.json and, in a folder each, what is wanted of every image.

    "labels" are PNGs of ids, with the classes' colours as a palette; "colours" RGB PNGs of these;
    "overlays" colours over the image; "probabilities" compressed .npz files of "probabilities"
    [H, W, classes] float16 and "classes", their names. float16 keeps three digits, which is more
    than a network knows, in half the space.

    Images that the network sees at one size go through it together, in batches; at most four
    batches of images wait for others of their size. Threads read and write while the network works.
    Probabilities are held for a whole image, tiles or not, while those of the last are written.

    Args:
      module, variables: as of `predict.answers`.
      targets: of `targets`.
      output: the folder.
      labels: names, colours and raw ids.
      options: keywords of `predict.predict`; `raw_ids` True writes the dataset's own ids.
      batch_size: images at a time; what is left of a size is filled up with copies.
      archive: pack the label images for this server, too, one of `archive.SERVERS`, in its ids.

    Raises:
      ConfigError: for classes that are not the archive's.
      DataError: for an image that cannot be read, classes without a raw id, or what the archive's
        server would refuse.
    """
    outputs = {kind for files_of in targets.values() for kind in files_of}
    raw_ids = labels.first_raw_ids if options["raw_ids"] else None
    if archive is not None:
        label_files = [files_of["labels"] for files_of in targets.values()]
        archives.check(archive, label_files, labels)
        raw_ids = archives.raw_ids_of(archive)
    options = {key: value for key, value in options.items() if key != "raw_ids"}
    see = functools.partial(
        answers, module, variables, with_probabilities="probabilities" in outputs
    )
    if "probabilities" in outputs and options["tile_size"] is not None:
        runtime.say(
            "predict.tile_size: probabilities are held for a whole image all the same, "
            f"{4 * len(labels.names)} bytes a pixel"
        )
    runtime.write_whole(output / LEGEND, pictures.png(pictures.legend(labels)))
    runtime.write_whole(output / FILE, labels.to_json())
    with (
        runtime.Progress(len(targets), "predict") as progress,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        images = _ahead(pool, lambda path: (path, image_files.read_image(path)), targets, THREADS)
        seen = _answered(see, images, options, batch_size)
        write = functools.partial(_write, targets, labels, raw_ids)
        for _ in _ahead(pool, write, seen, 1 if "probabilities" in outputs else THREADS):
            progress.advance()
    if archive is not None:
        runtime.say(f"for the test server: {archives.pack(archive, label_files, output)}")


def _ahead(pool: Executor, function: Callable, items: Iterable[Any], ahead: int) -> Iterator[Any]:
    """`map(function, items)` by the pool, so many items ahead; errors come in their place."""
    pending = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _answered(
    see: Callable[..., list[Answer]],
    read: Iterable[tuple[Path, np.ndarray]],
    options: Mapping[str, Any],
    batch_size: int,
) -> Iterator[tuple[Path, np.ndarray, Answer]]:
    """(path, image, answer) of every (path, image), in batches of those seen at one size."""

    def size_of(item):
        size = item[1].shape[:2]
        tiled = _tile_size(size, options) is not None
        return None if tiled else seen_size(size, options["crop_size"], options["resize"])

    for group in pipeline.grouped(read, size_of, batch_size, most=4 * batch_size):
        paths, images = zip(*group)
        tile_size = _tile_size(images[0].shape[:2], options)
        if tile_size not in (None, options["tile_size"]):
            runtime.say(
                f"{paths[0]}: {files.shown_size(images[0].shape)} px, seen in tiles of "
                f"{tile_size[0]} px, to which its image pooling is confined; predict.tile_size "
                "chooses others"
            )
        given = options | {"tile_size": tile_size, "batch_size": batch_size}
        yield from zip(paths, images, see(images, **given))


def _tile_size(size: tuple[int, int], options: Mapping[str, Any]) -> tuple[int, int] | None:
    """The tiles that an image of (height, width) is seen in; None: it is seen whole.

    One that would take too much memory whole is so unless something else is wanted.
    """
    if needs_tiles(size, options["tile_size"]):
        return options["tile_size"]
    chosen = any(options[key] for key in ("tile_size", "resize", "crf"))
    return None if chosen or math.prod(size) <= WHOLE else TILE_SIZE


def _write(
    targets: Mapping[Path, Mapping[str, Path]],
    labels: Labels,
    raw_ids: np.ndarray | None,
    seen: tuple[Path, np.ndarray, Answer],
) -> None:
    path, image, answer = seen
    for output, file in targets[path].items():
        runtime.write_whole(file, _ENCODERS[output](image, answer, labels, raw_ids))


def _labels(image, answer, labels, raw_ids) -> bytes:
    if raw_ids is not None:
        return pictures.png(raw_ids[answer.labels])
    return pictures.png(pictures.indexed(answer.labels, labels.palette))


def _colours(image, answer, labels, raw_ids) -> bytes:
    return pictures.png(labels.palette[answer.labels])


def _overlays(image, answer, labels, raw_ids) -> bytes:
    return pictures.png(pictures.overlay(image, answer.labels, labels.palette))


def _probabilities(image, answer, labels, raw_ids) -> bytes:
    buffer, probs = io.BytesIO(), answer.probabilities.astype(np.float16)
    np.savez_compressed(buffer, probabilities=probs, classes=np.array(labels.names))
    return buffer.getvalue()


_ENCODERS = {  # of config.OUTPUTS
    "labels": _labels,
    "colours": _colours,
    "overlays": _overlays,
    "probabilities": _probabilities,
}
