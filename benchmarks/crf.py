"""The fully connected CRF: our methods and pydensecrf in turn, against the exact mean field.

python benchmarks/crf.py [--methods fast modes] [--settings 10,80,13 4,65,3] [--live 4 21]

Photographs are scikit-image's (`pip install scikit-image`), or any given; pydensecrf is optional.
Exact answers take minutes each on a CPU and are kept in --exact.
"""

import argparse
import hashlib
import tempfile
from pathlib import Path

import contenders
import contest
import numpy as np
from contest import Contender
from PIL import Image

CLASSES, ITERATIONS = 21, 10
CACHE = Path(tempfile.gettempdir()) / "deeplab_jax_exact_crf"
SMOOTHNESS = {"w2": 3.0, "sigma_gamma": 3.0}
COLUMNS = (
    "photograph",
    "size",
    "live",
    "w1, sigma_alpha, sigma_beta",
    "method",
    "ms",
    "ours / pydensecrf",
    "labels off",
    "distance",
    "first call s",
    "peak MB",
)


def photograph(path: str, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8 of `size`: a file, or a name in skimage.data."""
    if Path(path).exists():
        image = Image.open(path)
    else:
        from skimage import data

        image = Image.fromarray(getattr(data, path)())
    return np.asarray(image.convert("RGB").resize(size[::-1], Image.Resampling.LANCZOS))


def answer(image: np.ndarray, live: int, seed: int = 0) -> np.ndarray:
    """Probabilities [H, W, 21] as of a network of output stride 8 that knows `live` regions.

    Regions are the photograph's own, of alike smoothed colour and place. The logits are blurred by
    the stride and by bilinear upsampling, and wrong in places: noise as wide as an object.
    """
    rng = np.random.default_rng(seed)
    height, width, _ = image.shape
    small = (-(-width // 8), -(-height // 8))
    colour = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    y, x = np.mgrid[: small[1], : small[0]]
    points = np.dstack([np.asarray(colour, float), 4.0 * y, 4.0 * x]).reshape(-1, 5)
    centres = points[rng.choice(len(points), live, replace=False)]
    for _ in range(20):
        region = ((points[:, None] - centres) ** 2).sum(-1).argmin(1)
        members = [points[region == i] for i in range(live)]
        centres = np.stack([m.mean(0) if len(m) else c for m, c in zip(members, centres)])
    logits = 4.0 * np.eye(CLASSES)[region].reshape(small[1], small[0], CLASSES)

    def smoothly(values, to):
        maps = [Image.fromarray(m.astype(np.float32)) for m in np.moveaxis(values, -1, 0)]
        return np.dstack([np.asarray(m.resize(to, Image.Resampling.BICUBIC)) for m in maps])

    coarse = (max(2, small[0] // 6), max(2, small[1] // 6))
    noise = smoothly(rng.normal(size=(coarse[1], coarse[0], CLASSES)), small)
    logits[..., :live] += 1.5 * noise[..., :live]
    logits[..., live:] -= 4
    logits = smoothly(logits, (width, height)).astype(np.float32)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def exact(image, probs, setting: dict, folder: Path) -> np.ndarray:
    key = hashlib.sha256(image.tobytes() + probs.tobytes() + repr(setting).encode()).hexdigest()
    path = folder / f"{key[:24]}.npy"
    if not path.exists():
        q = contest.apart(contenders.crf_probabilities, image, probs, "exact", setting)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(path.with_suffix(".part.npy"), q)
        path.with_suffix(".part.npy").rename(path)
    return np.load(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photographs", nargs="+", default=["coffee", "astronaut"])
    parser.add_argument("--sizes", nargs="+", default=["375x500", "513x513"], help="in turn")
    parser.add_argument("--live", type=int, nargs="+", default=[4, 21], help="of 21 classes")
    parser.add_argument("--settings", nargs="+", default=["10,80,13", "4,65,3", "5,50,4"])
    parser.add_argument("--methods", nargs="+", default=["fast", "modes"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times-only", action="store_true", help="without the exact answers")
    parser.add_argument("--exact", type=Path, default=CACHE)
    parser.add_argument("--name", default="crf", help="of the files in results/")
    args = parser.parse_args()

    rows, raw = [], []
    for i, name in enumerate(args.photographs):
        size = tuple(map(int, args.sizes[i % len(args.sizes)].split("x")))
        image = photograph(name, size)
        for live in args.live:
            probs = answer(image, live)
            for text in args.settings:
                w1, alpha, beta = map(float, text.split(","))
                setting = {"w1": w1, "sigma_alpha": alpha, "sigma_beta": beta} | SMOOTHNESS
                setting["iterations"] = ITERATIONS
                case = [Path(name).stem, "x".join(map(str, size)), live, text]
                print(*case, flush=True)
                options = {"image": image, "probs": probs, "setting": setting}
                truth = None if args.times_only else exact(image, probs, setting, args.exact)
                options["truth"] = truth
                entrants = [
                    Contender(method, contenders.our_crf, options | {"method": method})
                    for method in args.methods
                ]
                entrants.append(Contender("pydensecrf", contenders.pydensecrf, options))
                results = contest.contest(entrants, rounds=args.rounds, seconds=3.0)
                raw.append({"case": case} | results)
                peer = results["pydensecrf"].get("median_ms")
                for method, found in results.items():
                    rows.append([*case, method, *_cells(found, method, peer)])
    contest.write(args.name, f"CRF, {CLASSES} classes, {ITERATIONS} iterations", COLUMNS, rows, raw)


def _cells(found, method, peer):
    if "error" in found:
        return [found["error"], *[None] * 5]
    ratio = None if method == "pydensecrf" or peer is None else found["median_ms"] / peer
    off = distance = None
    if "labels_off" in found:
        off, distance = f"{100 * found['labels_off']:.3f} %", f"{found['distance']:.4f}"
    cost = [found["first_call_s"], found["peak_memory_mb"]]
    return [found["median_ms"], ratio, off, distance, *cost]


if __name__ == "__main__":
    main()
