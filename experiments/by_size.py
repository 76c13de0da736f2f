"""How much of the embedded scenes' solids trained networks find, by the solids' size.

    python -m experiments.by_size results/arms/ARM/seed0 ...

prints the share of the pixels that get their class, of all val scenes.
"""

import itertools
import sys
from collections.abc import Sequence

import numpy as np

import deeplab_jax
from deeplab_jax.data import synthetic
from deeplab_jax.output import say

REACH = (0, 12, 25, 45, 120)  # px from the middle of a solid to its corners


def found_by_size(network, scenes: Sequence) -> list[float]:
    """The share of the solids' visible pixels that get their class, between neighbours of REACH.

    Args:
      network: has `segment(image) -> labels`.
      scenes: from `synthetic.scene`.
    """
    right, pixels = np.zeros((2, len(REACH) - 1), np.int64)
    y, x = np.mgrid[: synthetic.SIZE, : synthetic.SIZE]
    for scene in scenes:
        found = network.segment(scene.image)
        for kind, (cy, cx), reach in scene.objects:
            if kind in synthetic.SOLIDS:
                inside = (scene.label == kind) & (np.hypot(y - cy, x - cx) <= reach)
                place = np.searchsorted(REACH, reach, side="right") - 1
                right[place] += (found[inside] == kind).sum()
                pixels[place] += inside.sum()
    return (right / pixels).tolist()


def main(workdirs: Sequence[str]) -> None:
    count = synthetic.SPLITS["val"]
    scenes = [synthetic.scene(synthetic.VERSION, 0, "val", i) for i in range(count)]
    say("| network | " + " | ".join(f"{a}..{b} px" for a, b in itertools.pairwise(REACH)) + " |")
    for workdir in workdirs:
        shares = found_by_size(deeplab_jax.load(workdir), scenes)
        say(f"| {workdir} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
