"""[V2] PASCAL-Person-Part."""

from experiments.rows import AUG, COCO, CRF, MSC, rows

ROWS = rows(
    "[V2] PASCAL-Person-Part",
    ("ResNet-101", 58.90, "v2.py:resnet", {}),
    ("MSC, Aug", 63.10, "v2.py:resnet", MSC | AUG),
    ("MSC, COCO, Aug", 64.40, "v2.py:resnet", MSC | AUG, COCO),
    ("MSC, COCO, Aug, CRF", 64.94, "v2.py:resnet", MSC | AUG | CRF, COCO),
    ("MSC, COCO, Aug, LargeFOV", 62.18, "v2.py:resnet_largefov", MSC | AUG, COCO),
    ("MSC, COCO, Aug, ASPP", 62.76, "v2.py:resnet_aspp", MSC | AUG, COCO),
    dataset="person_part",
)
