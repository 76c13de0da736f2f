"""[V3+] Table 4: errors on ImageNet."""

from experiments.rows import rows

ROWS = rows(
    "[V3+] Table 4, top-1 / top-5 error",
    ("ResNet-101", "22.40 / 6.02", "imagenet.py:resnet_101_beta", {}),
    (
        "Xception-65, its paper's depthwise layers",
        "20.19 / 5.17",
        "imagenet.py:xception_65",
        {"model.xception_depthwise": "norm_relu"},
    ),
    (
        "without batch norm and ReLU after them",
        "+0.75 / +0.29",
        "imagenet.py:xception_65",
        {"model.xception_depthwise": "bare"},
    ),
    dataset="imagenet",
)
