"""[V1] on VOC 2012 test."""

from experiments.rows import CRF, SERVER, TRAINVAL, rows

NETS = [
    ("DeepLab-CRF", "4x4_r4", 66.4),
    ("DeepLab-MSc-CRF", "4x4_r4_msc", 67.1),
    ("DeepLab-CRF-7x7", "7x7", 70.3),
    ("DeepLab-CRF-LargeFOV", "largefov", 70.3),
    ("DeepLab-MSc-CRF-LargeFOV", "largefov_msc", 71.6),
]
ROWS = rows(
    "[V1] test",
    *((label, iou, f"v1.py:{net}", TRAINVAL | CRF, SERVER) for label, net, iou in NETS),
)
