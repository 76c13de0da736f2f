"""[FCN] PASCAL-Context."""

from experiments.rows import rows
from experiments.tables.fcn_table2 import FCN_8S

ROWS = rows(
    "[FCN] PASCAL-Context",
    ("FCN-8s", 35.1, FCN_8S, {}),
    dataset="pascal_context_59",
)
