"""How sure a difference is: its spread over seeds, and a paired bootstrap over images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deeplab_jax import metrics

DRAWS = 2000


class Measure(NamedTuple):
    """A figure of an evaluation.

    Attributes:
      label: what tables call it.
      figure: counts [C, C], rows are labels, → share in 0..1.
      width: of the trimap that is counted, in px; None is the whole image.
      minus: another measure to take off.
    """

    label: str
    figure: Callable[[np.ndarray], float] = metrics.mean_iou
    width: int | None = None
    minus: "Measure | None" = None

    @property
    def band(self) -> str:
        """Its key in counts.npz."""
        return "whole" if self.width is None else f"trimap_{self.width}"

    def of(self, counts: Mapping[str, np.ndarray], weights: np.ndarray) -> np.ndarray:
        """weights [D, images] → [D]: the figure where image i appears weights[d, i] times."""
        band = counts[self.band]  # [images, C, C]
        sums = (weights @ band.reshape(len(band), -1)).reshape(-1, *band.shape[1:])
        found = np.array([self.figure(summed) for summed in sums])
        return found - self.minus.of(counts, weights) if self.minus else found


WHOLE = Measure("mean IoU")
BANDS = tuple(Measure(f"mean IoU within {w} px", width=w) for w in (1, 2, 5, 10, 20, 40))
NARROW_MORE = BANDS[1]._replace(minus=WHOLE, label="within 2 px less over the whole")


class Contrast(NamedTuple):
    """A claim: the row `better` beats the row `worse` by these measures, the first decides."""

    claim: str
    better: str
    worse: str
    measures: tuple[Measure, ...]


def compare(
    measure: Measure,
    better: Sequence[Mapping[str, np.ndarray]],
    worse: Sequence[Mapping[str, np.ndarray]],
    draws: int = DRAWS,
) -> dict[str, Any]:
    """The difference of two rows whose counts.npz are given a seed each, over the same images.

    Returns:
      {"better", "worse": means over seeds; "differences": one a seed; "mean" and "spread" (sample
      standard deviation, NaN for one seed) of these; "positive": how many are above 0;
      "interval": [low, high], 95 % of the mean difference when the images are drawn anew with
      replacement, the same for every seed and both rows.}
    """
    images = len(better[0]["whole"])
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(images, np.full(images, 1 / images), draws)
    weights = np.concatenate([np.ones((1, images)), drawn])  # the images as they are come first
    found = np.array([[measure.of(counts, weights) for counts in row] for row in (better, worse)])
    differences = found[0] - found[1]  # [seeds, 1 + draws]
    of_seeds = differences[:, 0]
    return {
        "better": float(found[0, :, 0].mean()),
        "worse": float(found[1, :, 0].mean()),
        "differences": of_seeds.tolist(),
        "mean": float(of_seeds.mean()),
        "spread": spread(of_seeds),
        "positive": int((of_seeds > 0).sum()),
        "interval": np.nanpercentile(differences[:, 1:].mean(axis=0), [2.5, 97.5]).tolist(),
    }


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
