"""[FCN] Table 2: skips, each net from the one before."""

from experiments.rows import SERVER, rows

FCN_32S, FCN_16S, FCN_8S = (f"fcn.py:vgg16_{stride}s" for stride in (32, 16, 8))
ROWS = rows(
    "[FCN] Table 2, VOC 2011 val",
    ("FCN-32s", 59.4, FCN_32S, {}),
    ("FCN-16s, init_from FCN-32s", 62.4, FCN_16S, {}),
    ("FCN-8s, init_from FCN-16s", 62.7, FCN_8S, {}),
    ("FCN-8s, VOC 2012 test", 62.2, FCN_8S, {}, SERVER),
)
ROWS[1] = ROWS[1]._replace(start=ROWS[0].label)
ROWS[2] = ROWS[2]._replace(start=ROWS[1].label)
