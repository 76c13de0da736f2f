"""[V3] on VOC 2012 test and Cityscapes test."""

from experiments.rows import AT_8, COCO, FLIPS, JFT, SERVER, rows

HARD = {"data.bootstrap_classes": (2, 9, 11, 16, 18)}
ROWS = [
    *rows(
        "[V3] test",
        ("ASPP, COCO", 85.7, "v3.py:aspp_trainval", AT_8 | FLIPS | HARD, COCO, SERVER),
        ("ASPP, JFT", 86.9, "v3.py:aspp_trainval", AT_8 | FLIPS | HARD, JFT, SERVER),
    ),
    *rows(
        "[V3] Cityscapes test",
        ("ASPP", 81.3, "v3.py:aspp_trainval", AT_8 | FLIPS, SERVER),
        dataset="cityscapes",
    ),
]
