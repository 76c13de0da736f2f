"""One training step on a batch that is on the device, ours against torch's modes.

python benchmarks/training_step.py [--cases "v3 resnet_50 16" ...] [--size 513] [--batch 16]
"""

import contenders
import tables
from contest import Contender

CASES = (
    "v3plus xception_65 16",
    "v3 resnet_50 16",
    "v3 resnet_50 8",
    "v3plus resnet_101 16",
    "v3plus mobilenet_v2 16",
)


def lineup(case: str, size: int, batch: int, dtype: str) -> list[Contender]:
    options = {"case": case, "size": size, "batch": batch, "dtype": dtype}
    return [
        Contender("ours", contenders.our_step, options),
        *(
            Contender(f"torch {mode}", contenders.torch_step, options | {"mode": mode})
            for mode in ("eager", "channels_last", "compile")
        ),
    ]


if __name__ == "__main__":
    # Three passes of arithmetic: forward, gradient of the input, gradient of the weights.
    tables.main("training_step", "Training step", CASES, lineup, size=257, batches=(2,), passes=3)
