"""[FCN] Table 1: three classifiers made fully convolutional, without SBD's masks."""

from experiments.rows import rows
from experiments.tables.fcn_table2 import FCN_32S

TRAIN = {"data.train_split": "train"}
ROWS = rows(
    "[FCN] Table 1, VOC 2011 val",
    ("FCN-AlexNet", 39.8, "fcn.py:alexnet_32s", TRAIN),
    ("FCN-VGG16", 56.0, FCN_32S, TRAIN),
    ("FCN-GoogLeNet", 42.5, "fcn.py:googlenet_32s", TRAIN),
)
