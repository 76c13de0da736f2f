"""[V3+] Fig. 5: what the decoder gains near boundaries, by the width of the trimap."""

from experiments.bootstrap import BANDS, WHOLE, Contrast
from experiments.rows import NO_DECODER, RESNET, XCEPTION, rows

ROWS = rows(
    "[V3+] Fig. 5, trimap, gain at the smallest width",
    ("ResNet-101, decoder", "+4.8", RESNET, {}),
    ("Xception-65, decoder", "+5.4", XCEPTION, {}),
)
# What the figure compares with; no rows of their own.
BESIDE = rows(
    "[V3+] Fig. 5, trimap, gain at the smallest width",
    ("ResNet-101, bilinear", "", RESNET, NO_DECODER),
    ("Xception-65, bilinear", "", XCEPTION, NO_DECODER),
)
CONTRASTS = [
    Contrast("the decoder near boundaries", with_it.label, without.label, (*BANDS, WHOLE))
    for with_it, without in zip(ROWS, BESIDE)
]
