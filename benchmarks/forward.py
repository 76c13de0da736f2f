"""Inference: images on the device to label maps at their size, ours against torch's modes.

python benchmarks/forward.py [--cases "v3 resnet_50 16" ...] [--batch 1 4] [--dtype bfloat16]
"""

import contenders
import tables
from contest import Contender

CASES = (
    "v3plus xception_65 16",
    "v3plus xception_65 8",
    "v3 resnet_50 16",
    "v3 resnet_50 8",
    "v3 resnet_101 16",
    "v3 resnet_101 8",
    "v3plus resnet_101 16",
    "v3 mobilenet_v2 16",
    "v3plus mobilenet_v2 16",
)


def lineup(case: str, size: int, batch: int, dtype: str) -> list[Contender]:
    options = {"case": case, "size": size, "batch": batch, "dtype": dtype}
    return [
        Contender("ours", contenders.our_forward, options),
        Contender("ours, not frozen", contenders.our_forward, options | {"frozen": False}),
        *(
            Contender(f"torch {mode}", contenders.torch_forward, options | {"mode": mode})
            for mode in contenders.TORCH_MODES
        ),
    ]


if __name__ == "__main__":
    tables.main("forward", "Inference", CASES, lineup, size=513, batches=(1, 4), passes=1)
