"""JPEG files on disk to label PNGs on disk, ours against torch's modes.

python benchmarks/predict_end_to_end.py [--cases "v3 mobilenet_v2 16" ...] [--images 8]
    [--photographs "VOC_SUBSET/JPEGImages/*.jpg"]
"""

import argparse
import glob
import shutil
import tempfile
from pathlib import Path

import contenders
import contest
import numpy as np
from contest import Contender
from PIL import Image

from deeplab_jax.data.synthetic import Synthetic

CASES = ("v3 mobilenet_v2 16", "v3plus xception_65 16")
COLUMNS = (
    "network, output stride",
    "ours images/s",
    "torch's best images/s",
    "mode",
    "time, ours / torch's best",
    "label pixels alike",
)


def write_images(folder: Path, count: int, size: int, photographs: str) -> None:
    """Some photographs, or scenes of VOC's sizes: 500x375 and 375x500 in turn where size is 513."""
    folder.mkdir()
    if photographs:
        found = sorted(glob.glob(photographs))
        for i in np.linspace(0, len(found) - 1, count).astype(int):
            shutil.copy(found[i], folder)
        return
    long, short = size * 500 // 513, size * 375 // 513
    source = Synthetic("val")
    for i in range(count):
        shape = (long, short) if i % 2 else (short, long)
        image = Image.fromarray(source[i]["image"]).resize(shape, Image.Resampling.BICUBIC)
        image.save(folder / f"{i:03d}.jpg", quality=92)


def alike(one: Path, other: Path) -> float:
    """Share of the pixels, over all files of both folders, with the same class."""
    pairs = [
        (np.asarray(Image.open(f)), np.asarray(Image.open(other / f.name))) for f in one.iterdir()
    ]
    return float(np.mean(np.concatenate([(a == b).ravel() for a, b in pairs])))


def row(case: str, images: int, size: int, rounds: int, photographs: str) -> tuple[list, dict]:
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_images(folder / "images", images, size, photographs)
        contest.apart(contenders.save_variables, case, str(folder / "variables.npz"))
        options = {"case": case, "size": size, "inputs": str(folder / "images")}
        options["variables"] = str(folder / "variables.npz")
        entrants = [
            Contender("ours", contenders.our_prediction, options | {"output": str(folder / "ours")})
        ]
        for mode in ("channels_last", "compile"):
            mine = options | {"mode": mode, "output": str(folder / mode)}
            entrants.append(Contender(f"torch {mode}", contenders.torch_prediction, mine))
        results = contest.contest(entrants, rounds=rounds)
        ms = {name: r["median_ms"] for name, r in results.items() if "median_ms" in r}
        if "ours" not in ms:
            return [case, results["ours"]["error"], *[None] * (len(COLUMNS) - 2)], results
        ours = ms.pop("ours")
        best = min(ms, key=ms.get, default=None)
        if best is None:
            return [case, 1e3 * images / ours, *[None] * (len(COLUMNS) - 2)], results
        mode = best.removeprefix("torch ")
        same = f"{100 * alike(folder / 'ours/labels', folder / mode):.2f} %"
        rates = [1e3 * images / time for time in (ours, ms[best])]
        return [case, *rates, mode, ours / ms[best], same], results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=513, help="side that images are padded to")
    parser.add_argument("--photographs", default="", help="a glob of JPEG files; else scenes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--name", default="predict_end_to_end", help="of the files in results/")
    args = parser.parse_args()

    rows, raw = [], []
    for case in args.cases:
        print(case, flush=True)
        cells, results = row(case, args.images, args.size, args.rounds, args.photographs)
        rows.append(cells)
        raw.append({"case": case, "images": args.images} | results)
    title = f"JPEG files to label PNGs, padded to {args.size}x{args.size}, float32"
    contest.write(args.name, title, COLUMNS, rows, raw)


if __name__ == "__main__":
    main()
