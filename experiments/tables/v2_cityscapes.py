"""[V2] Cityscapes."""

from experiments.rows import AUG, CRF, SERVER, rows

ROWS = rows(
    "[V2] Cityscapes",
    ("VGG LargeFOV, half size", 62.97, "v2.py:vgg_largefov", {}, "half-size images"),
    ("VGG LargeFOV, half size, CRF", 64.18, "v2.py:vgg_largefov", CRF, "half-size images"),
    ("VGG LargeFOV", 64.89, "v2.py:vgg_largefov", {}),
    ("VGG LargeFOV, CRF", 65.94, "v2.py:vgg_largefov", CRF),
    ("ResNet-101", 66.6, "v2.py:resnet", {}),
    ("LargeFOV", 69.2, "v2.py:resnet_largefov", {}),
    ("ASPP", 70.4, "v2.py:resnet_aspp", {}),
    ("ASPP, Aug", 71.0, "v2.py:resnet_aspp", AUG),
    ("ASPP, Aug, CRF", 71.4, "v2.py:resnet_aspp", AUG | CRF),
    ("ASPP, Aug, CRF, test", 70.4, "v2.py:resnet_aspp", AUG | CRF, SERVER),
    ("pre-release, test", 63.1, "v2.py:vgg_largefov", CRF, SERVER),
    ("pre-release, weak labels, test", 64.8, "v2.py:vgg_largefov", CRF, SERVER),
    dataset="cityscapes",
)
