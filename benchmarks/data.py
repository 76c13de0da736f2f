"""Decoding and augmentation: images/s of our pipeline beside torch's DataLoader, same pixels.

python benchmarks/data.py [--root VOC2012] [--workers 1 2]

Without --root the embedded scenes are written as JPEGs and palette PNGs of VOC's sizes.
"""

import argparse
import contextlib
import itertools
import pickle
import tempfile
from pathlib import Path

import contest
import grain
import numpy as np
from contest import Contender
from PIL import Image

from deeplab_jax.data import datasets, pipeline
from deeplab_jax.data.labels import voc_palette
from deeplab_jax.data.synthetic import Synthetic
from deeplab_jax.data.transforms import Augment

MEAN = 127.5
SCALES = {"min_scale_factor": 0.5, "max_scale_factor": 2.0, "scale_factor_step_size": 0.25}
BATCHES = 6  # a call: more than any contender has ready, so that none lives on its turn's start
COMPARED = 2  # batches whose pixels are compared
PEERS = ("Pillow", "OpenCV")
COLUMNS = (
    "workers",
    "ours images/s",
    "ours in processes",
    *(f"DataLoader, {peer}" for peer in PEERS),
    *(f"ours / {peer}" for peer in PEERS),
    "largest difference of 255",
    "labels differing",
)


# --- contenders: each returns (a call that takes some batches, {}) ------------------------------


def ours(root: str, split: str, crop: int, batch: int, workers: int, processes: bool, to: str):
    source = datasets.source("voc", root, split, 21, 255)
    data = SCALES | {"name": "voc", "normalization": "zero_mean", "crop_size": (crop, crop)}
    data |= {"flip": True, "ignore_label": 255, "min_resize_value": None, "augment_on": "host"}
    data |= {"num_threads": workers, "num_workers": workers if processes else 0}
    batches = pipeline.train_iterator(source, data, 0, batch)
    return _taking(((b["image"], b["label"]) for b in batches), to)


def theirs(peer: str, placed: str, batch: int, workers: int, to: str):
    import torch

    examples = _Examples(pickle.loads(Path(placed).read_bytes()), peer)
    loader = torch.utils.data.DataLoader(
        examples, batch, num_workers=workers, persistent_workers=True, worker_init_fn=_one_thread
    )
    endless = itertools.chain.from_iterable(itertools.repeat(loader))
    return _taking(((x.numpy(), y.numpy()) for x, y in endless), to)


def _taking(batches, to: str):
    first = [next(batches) for _ in range(COMPARED)]
    np.savez(to, image=np.stack([b[0] for b in first]), label=np.stack([b[1] for b in first]))
    del first

    def call():
        for _ in range(BATCHES):
            next(batches)

    return call, {}


def _one_thread(_):
    import cv2

    cv2.setNumThreads(0)


class _Examples:
    """torch's Dataset: what was drawn for our examples, done as one does it there.

    The whole image is resized, then padded, cropped, mirrored. Generous to it: nothing is drawn,
    labels stay int32, and OpenCV's images stay [H, W, C].
    """

    def __init__(self, placed, peer: str):
        self.placed, self.peer = placed, peer

    def __len__(self):
        return len(self.placed)

    def __getitem__(self, index):
        import torch

        one = self.placed[index]
        with Image.open(one["mask"]) as file:  # OpenCV turns a palette into colours
            mask = np.array(file)
        grid = [_sampled(old, new) for old, new in zip(mask.shape, one["size"])]
        nearest = [np.floor(positions + np.float32(0.5)).astype(int) for positions in grid]
        label = mask[nearest[0]][:, nearest[1]].astype(np.int32)
        image, label = {"Pillow": _with_torch, "OpenCV": _with_opencv}[self.peer](one, label, grid)
        return torch.as_tensor(image), torch.as_tensor(label)


def _sampled(old: int, new: int) -> np.ndarray:
    """Where the samples of an axis lie before resizing, corners aligned."""
    return np.arange(new, dtype=np.float32) * np.float32((old - 1) / max(new - 1, 1))


def _with_torch(one, label, grid):
    import torch
    from torch.nn import functional

    with Image.open(one["image"]) as file:
        image = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
    image = functional.interpolate(
        image[None].float(), one["size"], mode="bilinear", align_corners=True
    )[0]
    label = torch.from_numpy(label)
    down, right = (max(one["crop"] - n, 0) for n in one["size"])
    image = functional.pad(image, (0, right, 0, down), value=MEAN)
    label = functional.pad(label, (0, right, 0, down), value=255)
    window = (slice(one["top"], one["top"] + one["crop"]),)
    window += (slice(one["left"], one["left"] + one["crop"]),)
    image, label = image[:, *window], label[window]
    if one["mirrored"]:
        image, label = image.flip(2), label.flip(1)
    return image, label


def _with_opencv(one, label, grid):
    import cv2

    image = cv2.imread(one["image"], cv2.IMREAD_COLOR_RGB).astype(np.float32)
    y, x = np.meshgrid(*grid, indexing="ij")
    image = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    down, right = (max(one["crop"] - n, 0) for n in one["size"])
    around = (0, down, 0, right, cv2.BORDER_CONSTANT)
    image = cv2.copyMakeBorder(image, *around, value=(MEAN, MEAN, MEAN))
    label = cv2.copyMakeBorder(label, *around, value=255)
    window = (slice(one["top"], one["top"] + one["crop"]),)
    window += (slice(one["left"], one["left"] + one["crop"]),)
    image, label = image[window], label[window]
    if one["mirrored"]:
        return cv2.flip(image, 1), cv2.flip(label, 1)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


# --- what they work on ---------------------------------------------------------------------------


def write_scenes(root: Path, count: int) -> None:
    """Embedded scenes in VOC's layout and sizes, 500x375 and 375x500 in turn."""
    for folder in ("JPEGImages", "SegmentationClassAug", "lists"):
        (root / folder).mkdir()
    source = Synthetic("train")
    for i in range(count):
        shape = (500, 375) if i % 2 else (375, 500)
        example = source[i]
        image = Image.fromarray(example["image"]).resize(shape, Image.Resampling.BICUBIC)
        image.save(root / "JPEGImages" / f"{i}.jpg", quality=92)
        mask = Image.fromarray(example["label"]).resize(shape, Image.Resampling.NEAREST)
        mask.putpalette(voc_palette().tobytes())
        mask.save(root / "SegmentationClassAug" / f"{i}.png")
    names = "\n".join(map(str, range(count)))
    for split in ("train", "val"):
        (root / "lists" / f"{split}.txt").write_text(names)


def draws(root: str, split: str, crop: int, count: int) -> list[dict]:
    """What our pipeline draws for the first examples of its stream."""
    source = datasets.source("voc", root, split, 21, 255)
    augment = Augment((crop, crop), *SCALES.values(), True, (MEAN,) * 3)
    stream = grain.MapDataset.source(source).seed(0).shuffle().repeat().random_map(augment.place)
    paths = zip(source.images, source.masks)
    files = {image.stem: {"image": str(image), "mask": str(mask)} for image, mask in paths}
    out = []
    for i in range(count):
        placed = stream[i]
        drawn = {key: getattr(placed, key) for key in ("size", "top", "left", "mirrored")}
        out.append(files[placed.example["name"]] | drawn | {"crop": crop})
    return out


def difference(one: Path, other: Path) -> tuple[float, int]:
    """(largest difference of the images, how many label pixels differ)."""
    with np.load(one) as a, np.load(other) as b:
        image = b["image"]
        if image.shape != a["image"].shape:  # torch's [B, C, H, W]
            image = np.moveaxis(image, -3, -1)
        return float(np.abs(a["image"] - image).max()), int((a["label"] != b["label"]).sum())


def row(workers: int, args, root: str, folder: Path, placed: Path) -> tuple[list, dict]:
    made = {name: folder / f"{name}.npz" for name in ("ours", "processes", *PEERS)}
    common = {
        name: {"batch": args.batch, "workers": workers, "to": str(made[name])} for name in made
    }
    mine = {"root": root, "split": args.split, "crop": args.crop}
    entrants = [
        Contender("ours", ours, common["ours"] | mine | {"processes": False}),
        Contender("processes", ours, common["processes"] | mine | {"processes": True}),
        *(
            Contender(peer, theirs, common[peer] | {"peer": peer, "placed": str(placed)})
            for peer in PEERS
        ),
    ]
    results = contest.contest(entrants, rounds=args.rounds)
    rate = {
        name: BATCHES * args.batch / (result["median_ms"] / 1e3)
        for name, result in results.items()
        if "median_ms" in result
    }
    apart = [difference(made["ours"], made[n]) for n in ("processes", *PEERS) if n in rate]
    cells = [workers, *(rate.get(name) for name in ("ours", "processes", *PEERS))]
    cells += [rate["ours"] / rate[peer] if peer in rate else None for peer in PEERS]
    cells += [max(a[0] for a in apart), max(a[1] for a in apart)]
    return cells, {"workers": workers, "images_per_second": rate} | results


@contextlib.contextmanager
def voc(root: str | None):
    """(root of a dataset in VOC's layout, what it is); None stands for embedded scenes."""
    if root is not None:
        yield root, "VOC"
        return
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder), 64)
        yield folder, "embedded scenes at VOC's sizes"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", help="VOC2012 folder")
    parser.add_argument("--split", default="train")
    parser.add_argument("--crop", type=int, default=513)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--name", default="data", help="of the files in results/")
    args = parser.parse_args()

    rows, raw = [], []
    with voc(args.root) as (root, images), tempfile.TemporaryDirectory() as folder:
        placed = Path(folder) / "placed.pickle"
        placed.write_bytes(pickle.dumps(draws(root, args.split, args.crop, 64 * args.batch)))
        for workers in args.workers:
            print(f"{workers} workers", flush=True)
            cells, results = row(workers, args, root, Path(folder), placed)
            rows.append(cells)
            raw.append(results)
    size = f"{args.crop}x{args.crop}, batch {args.batch}"
    title = f"Decoding and augmentation to {size}, {images}"
    contest.write(args.name, title, COLUMNS, rows, raw)


if __name__ == "__main__":
    main()
