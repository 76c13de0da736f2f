"""[FCN] Table 5: SIFT Flow, semantic and geometric labels from one net."""

from experiments.rows import rows
from experiments.tables.fcn_table2 import FCN_16S

ROWS = rows(
    "[FCN] Table 5, SIFT Flow",
    ("FCN-16s, semantic and geometric", 39.5, FCN_16S, {"model.heads": {"geometry": 3}}),
    dataset="sift_flow",
)
