"""[V1] on VOC 2012 val, before and after the CRF."""

from experiments.rows import with_crf

NETS = [
    ("DeepLab", "4x4_r4", 59.80, 63.74),
    ("DeepLab-MSc", "4x4_r4_msc", 61.30, 65.21),
    ("DeepLab-7x7", "7x7", 64.38, 67.64),
    ("DeepLab-LargeFOV", "largefov", 62.25, 67.64),
    ("DeepLab-MSc-LargeFOV", "largefov_msc", 64.21, 68.70),
]
ROWS = with_crf("[V1] val", NETS, "v1.py")
