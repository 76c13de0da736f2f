"""[V2] Table 4: what ResNet-101 gains by each addition."""

from experiments.rows import AUG, COCO, CRF, MSC, SERVER, TRAINVAL, rows

ROWS = rows(
    "[V2] Table 4",
    ("ResNet-101", 68.72, "v2.py:resnet", {}),
    ("MSC", 71.27, "v2.py:resnet", MSC),
    ("MSC, COCO", 73.28, "v2.py:resnet", MSC, COCO),
    ("MSC, COCO, Aug", 74.87, "v2.py:resnet", MSC | AUG, COCO),
    ("MSC, COCO, Aug, LargeFOV", 75.54, "v2.py:resnet_largefov", MSC | AUG, COCO),
    ("MSC, COCO, Aug, ASPP", 76.35, "v2.py:resnet_aspp", MSC | AUG, COCO),
    ("MSC, COCO, Aug, ASPP, CRF", 77.69, "v2.py:resnet_aspp", MSC | AUG | CRF, COCO),
    ("the same, test", 79.7, "v2.py:resnet_aspp", MSC | AUG | TRAINVAL | CRF, COCO, SERVER),
)
