"""Inference: images on the device to label maps at their size, ours against torch's modes.

python benchmarks/forward.py [--cases "v3 resnet_50 16" ...] [--batch 1 4] [--dtype bfloat16]
"""

import contenders
import tables

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


if __name__ == "__main__":
    tables.main(
        "forward",
        "Inference",
        CASES,
        contenders.our_forward,
        contenders.torch_forward,
        modes=tuple(contenders.TORCH_MODES),
        variants={"ours, not frozen": {"frozen": False}},
        size=513,
        batches=(1, 4),
        passes=1,
    )
