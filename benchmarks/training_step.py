"""One training step on a batch that is on the device, ours against torch's modes.

python benchmarks/training_step.py [--cases "v3 resnet_50 16" ...] [--size 513] [--batch 16]
"""

import contenders
import tables

CASES = (
    "v3plus xception_65 16",
    "v3 resnet_50 16",
    "v3 resnet_50 8",
    "v3plus resnet_101 16",
    "v3plus mobilenet_v2 16",
)


if __name__ == "__main__":
    tables.main(
        "training_step",
        "Training step",
        CASES,
        contenders.our_step,
        contenders.torch_step,
        modes=("eager", "channels_last", "compile"),
        size=257,
        batches=(2,),
        passes=3,  # forward, gradient of the input, gradient of the weights
    )
