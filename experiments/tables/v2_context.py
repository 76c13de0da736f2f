"""[V2] PASCAL-Context."""

from experiments.rows import AUG, COCO, CRF, MSC, rows

ROWS = rows(
    "[V2] PASCAL-Context",
    ("VGG LargeFOV", 37.6, "v2.py:vgg_largefov", {}),
    ("VGG LargeFOV, CRF", 39.6, "v2.py:vgg_largefov", CRF),
    ("ResNet-101", 39.6, "v2.py:resnet", {}),
    ("MSC", 41.4, "v2.py:resnet", MSC),
    ("MSC, COCO, Aug", 42.9, "v2.py:resnet", MSC | AUG, COCO),
    ("MSC, COCO, Aug, LargeFOV", 43.5, "v2.py:resnet_largefov", MSC | AUG, COCO),
    ("MSC, COCO, Aug, ASPP", 44.7, "v2.py:resnet_aspp", MSC | AUG, COCO),
    ("MSC, COCO, Aug, ASPP, CRF", 45.7, "v2.py:resnet_aspp", MSC | AUG | CRF, COCO),
    dataset="pascal_context",
)
