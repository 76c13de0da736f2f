"""[V2] Table 3: LargeFOV and ASPP on VGG-16, before and after the CRF."""

from experiments.rows import CRF, SERVER, TRAINVAL, rows, with_crf

NETS = [
    ("LargeFOV", "vgg_largefov", 65.76, 69.84),
    ("ASPP-S", "vgg_aspp_s", 66.98, 69.73),
    ("ASPP-L", "vgg_aspp_l", 68.96, 71.57),
]
ROWS = [
    *with_crf("[V2] Table 3", NETS, "v2.py"),
    *rows("[V2] test", ("ASPP-L, CRF", 72.6, "v2.py:vgg_aspp_l", TRAINVAL | CRF, SERVER)),
]
