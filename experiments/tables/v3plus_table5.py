"""[V3+] Table 5: Xception-65, its decoder, separable convolutions (SC) and pretraining."""

from experiments.rows import AT_8, COCO, FLIPS, JFT, NO_DECODER, SCALES, XCEPTION, rows

DENSE = {"model.separable": False}
PLAIN = NO_DECODER | DENSE
ROWS = rows(
    "[V3+] Table 5, Xception-65",
    ("OS 16", 79.17, XCEPTION, PLAIN),
    ("OS 16, MS", 80.57, XCEPTION, PLAIN | SCALES),
    ("OS 16, MS, flip", 80.79, XCEPTION, PLAIN | FLIPS),
    ("eval OS 8", 79.64, XCEPTION, PLAIN | AT_8),
    ("eval OS 8, MS", 81.15, XCEPTION, PLAIN | AT_8 | SCALES),
    ("eval OS 8, MS, flip", 81.34, XCEPTION, PLAIN | AT_8 | FLIPS),
    ("decoder, OS 16", 79.93, XCEPTION, DENSE),
    ("decoder, OS 16, MS", 81.38, XCEPTION, DENSE | SCALES),
    ("decoder, OS 16, MS, flip", 81.44, XCEPTION, DENSE | FLIPS),
    ("decoder, eval OS 8", 80.22, XCEPTION, DENSE | AT_8),
    ("decoder, eval OS 8, MS", 81.60, XCEPTION, DENSE | AT_8 | SCALES),
    ("decoder, eval OS 8, MS, flip", 81.63, XCEPTION, DENSE | AT_8 | FLIPS),
    ("decoder, SC, OS 16", 79.79, XCEPTION, {}),
    ("decoder, SC, OS 16, MS, flip", 81.21, XCEPTION, FLIPS),
    ("decoder, SC, eval OS 8", 80.02, XCEPTION, AT_8),
    ("decoder, SC, eval OS 8, MS, flip", 81.39, XCEPTION, AT_8 | FLIPS),
    ("decoder, SC, COCO", 82.20, XCEPTION, {}, COCO),
    ("decoder, SC, COCO, MS, flip", 83.34, XCEPTION, FLIPS, COCO),
    ("decoder, SC, COCO, eval OS 8", 82.45, XCEPTION, AT_8, COCO),
    ("decoder, SC, COCO, eval OS 8, MS, flip", 83.58, XCEPTION, AT_8 | FLIPS, COCO),
    ("decoder, SC, JFT", 83.03, XCEPTION, {}, JFT),
    ("decoder, SC, JFT, MS, flip", 84.22, XCEPTION, FLIPS, JFT),
    ("decoder, SC, JFT, eval OS 8", 83.39, XCEPTION, AT_8, JFT),
    ("decoder, SC, JFT, eval OS 8, MS, flip", 84.56, XCEPTION, AT_8 | FLIPS, JFT),
)
