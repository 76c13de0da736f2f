"""DeepLabv3+ (arXiv 1802.02611): encoder-decoder with atrous separable convolution.

    python -m deeplab_jax.main --config=configs/v3plus.py --workdir=/tmp/v3plus

trains, evaluates and shows MobileNetV2 v3+ at half width on the embedded scenes.
`configs/v3plus.py:VARIANT,DATASET` names another backbone or dataset; a dataset alone takes
xception_65, the paper's best. `--config.data.root=DIR` says where a dataset lies.

| preset                 | paper                   | crop | batch | steps | rate  | OS |
| xception_65,voc        | Table 5                 | 513  | 16    | 30000 | 0.007 | 16 |
| xception_71,voc        | Table 7's, on VOC       | 513  | 16    | 30000 | 0.007 | 16 |
| resnet_101,voc         | Tables 1 to 3           | 513  | 16    | 30000 | 0.007 | 16 |
| mobilenet_v2,voc       | v3+ on arXiv 1801.04381 | 513  | 16    | 30000 | 0.007 | 16 |
| mobilenet_v3_large,voc | v3+ on arXiv 1905.02244 | 513  | 16    | 30000 | 0.007 | 16 |

Stages as the paper chains them, each `init_from` the workdir of the one before: COCO, then
`VARIANT,voc` on train_aug, then `VARIANT_trainval,voc` at output stride 8 with batch norm frozen.
"""

import common


def backbone(name):
    def configure(config):
        config.model.backbone = name
        config.model.decoder_output_stride = 4

    return configure


def resnet_101(config):
    """With multi-grid and dense 3x3 convolutions, as Tables 1 to 3 have it."""
    backbone("resnet_101_beta")(config)
    config.model.multi_grid = (1, 2, 4)
    config.model.separable = False
    config.optim.weight_decay = 1e-4


def mobilenet_v2_torch(config):
    """MobileNetV2 as PyTorch trains it on ImageNet, which its trunks (`init_from`) need, with the
    head that segmentation_models_pytorch puts on it: it learns in fewer steps than the paper's."""
    backbone("mobilenet_v2")(config)
    config.model.low_level = "output"
    config.model.depthwise_norm = False
    config.model.decoder_convs = 1
    config.model.dropout = 0.5
    config.model.padding = "fixed"
    config.model.batch_norm_epsilon = 1e-5
    config.model.batch_norm_decay = 0.9
    config.model.logits_stddev = 0.08
    config.data.normalization = "imagenet"


PAPER = {
    **{name: backbone(name) for name in ("xception_41", "xception_65", "xception_71")},
    "resnet_101": resnet_101,
    **{name: backbone(name) for name in ("mobilenet_v2", "mobilenet_v3_large")},
    "mobilenet_v2_torch": mobilenet_v2_torch,
}
VARIANTS = PAPER | common.trainval(PAPER)
EMBEDDED = {"mobilenet_v2": common.embedded}


def get_config(preset: str = ""):
    config = common.compose(preset, VARIANTS, default="xception_65", embedded=EMBEDDED)
    config.model.name = "v3plus"
    return config
