"""[V2] on VOC 2012 test, LargeFOV by its schedule."""

from experiments.rows import SERVER, TRAINVAL, rows
from experiments.tables.v2_table2 import SCHEDULES

ROWS = rows(
    "[V2] test, LargeFOV",
    ("step", 65.1, "v2.py:vgg_largefov", SCHEDULES[0][2] | TRAINVAL, SERVER),
    ("poly", 67.7, "v2.py:vgg_largefov", TRAINVAL, SERVER),
)
