"""DeepLab v3 (arXiv 1706.05587): batch norm trained, atrous blocks in cascade or in parallel.

    python -m deeplab_jax.main --config=configs/v3.py:aspp,voc --config.init_from=RESNET \\
        --config.data.root=VOC2012 --workdir=/tmp/v3
    python -m deeplab_jax.main --config=configs/v3.py:aspp_trainval,voc \\
        --config.init_from=/tmp/v3 --config.data.root=VOC2012 --workdir=/tmp/v3_trainval

| preset           | network                             | OS | batch norm | rate  | on        |
| aspp             | ASPP, multi-grid (1, 2, 4)          | 16 | trained    | 0.007 | train_aug |
| aspp_trainval    | the same, started from it           | 8  | frozen     | 0.001 | trainval  |
| cascade          | blocks 4 to 7, multi-grid (1, 2, 1) | 16 | trained    | 0.007 | train_aug |
| cascade_trainval | the same, started from it           | 8  | frozen     | 0.001 | trainval  |

30000 steps of 16 crops of 513 each (Sec. 4.1). Bootstrapping of the hard classes, for the test set:
`--config.data.bootstrap_classes='(2, 9, 11, 16, 18)'`. `configs/v3.py` alone trains v3's head on a
small backbone, on the embedded scenes.
"""

import common


def resnet(config):
    config.model.backbone = "resnet_101_beta"
    config.model.separable = False
    config.optim.weight_decay = 1e-4


def aspp(config):
    resnet(config)
    config.model.multi_grid = (1, 2, 4)


def cascade(config):
    """Table 4's best: 76.66."""
    resnet(config)
    config.model.context = "none"
    config.model.blocks = 7
    config.model.multi_grid = (1, 2, 1)


def mobilenet_v2(config):
    """Not the paper's: a backbone that learns the embedded scenes in minutes."""
    config.model.backbone = "mobilenet_v2"


PAPER = {"aspp": aspp, "cascade": cascade}
VARIANTS = PAPER | common.trainval(PAPER) | {"mobilenet_v2": mobilenet_v2}
EMBEDDED = {"mobilenet_v2": common.embedded}


def get_config(preset: str = ""):
    config = common.compose(preset, VARIANTS, default="aspp", embedded=EMBEDDED)
    config.model.name = "v3"
    return config
