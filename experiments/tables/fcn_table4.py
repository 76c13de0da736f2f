"""[FCN] Table 4: NYUDv2, depth beside colour."""

from experiments.rows import rows
from experiments.tables.fcn_table2 import FCN_16S, FCN_32S

LATE = {"data.channels": "rgb_hha", "model.channel_groups": (3, 3)}
ROWS = rows(
    "[FCN] Table 4, NYUDv2",
    ("FCN-32s RGB", 29.2, FCN_32S, {}),
    ("FCN-32s RGBD", 30.5, FCN_32S, {"data.channels": "rgb_depth"}),
    ("FCN-32s HHA", 24.2, FCN_32S, {"data.channels": "hha"}),
    ("FCN-32s RGB-HHA", 32.8, FCN_32S, LATE),
    ("FCN-16s RGB-HHA", 34.0, FCN_16S, LATE),
    dataset="nyudv2",
)
ROWS[4] = ROWS[4]._replace(start=ROWS[3].label)
