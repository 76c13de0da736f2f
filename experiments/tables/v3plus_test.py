"""[V3+] on VOC 2012 test."""

from experiments.rows import AT_8, COCO, FLIPS, JFT, SERVER, XCEPTION, rows

ROWS = rows(
    "[V3+] test",
    ("Xception-65", 87.8, f"{XCEPTION}_trainval", AT_8 | FLIPS, COCO, SERVER),
    ("Xception-65, JFT", 89.0, f"{XCEPTION}_trainval", AT_8 | FLIPS, JFT, SERVER),
)
