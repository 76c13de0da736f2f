"""[V2] Table 1: kernel and rate of DeepLab v1's fc6, before and after the CRF."""

from experiments.rows import with_crf

NETS = [
    ("7x7", "7x7", 64.38, 67.64),
    ("4x4, rate 4", "4x4_r4", 59.80, 63.74),
    ("4x4, rate 8", "4x4_r8", 63.41, 67.14),
    ("3x3, rate 12 (LargeFOV)", "largefov", 62.25, 67.64),
]
ROWS = with_crf("[V2] Table 1", NETS, "v1.py")
