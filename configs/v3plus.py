"""DeepLabv3+ (arXiv 1802.02611): encoder-decoder with atrous separable convolution.

    python -m deeplab_jax.main --config=configs/v3plus.py --workdir=/tmp/v3plus

trains, evaluates and shows MobileNetV2 v3+ at half width on the embedded scenes.
`configs/v3plus.py:VARIANT,DATASET` names another backbone or dataset; a dataset alone takes
xception_65, the paper's best. `--config.data.root=DIR` says where a dataset lies.

| preset            | paper                    | crop | batch | steps | rate  | OS |
| xception_65,voc   | Table 5                  | 513  | 16    | 30000 | 0.007 | 16 |
| xception_71,voc   | Table 7's, on VOC        | 513  | 16    | 30000 | 0.007 | 16 |
| mobilenet_v2,voc  | v3+ on arXiv 1801.04381  | 513  | 16    | 30000 | 0.007 | 16 |
"""

import common


def xception_41(config):
    config.model.backbone = "xception_41"
    config.model.decoder_output_stride = 4


def xception_65(config):
    config.model.backbone = "xception_65"
    config.model.decoder_output_stride = 4


def xception_71(config):
    config.model.backbone = "xception_71"
    config.model.decoder_output_stride = 4


def mobilenet_v2(config):
    config.model.backbone = "mobilenet_v2"
    config.model.decoder_output_stride = 4


def mobilenet_v2_torch(config):
    """MobileNetV2 as PyTorch trains it on ImageNet: its trunks (`init_from`) need all of this."""
    mobilenet_v2(config)
    config.model.padding = "fixed"
    config.model.batch_norm_epsilon = 1e-5
    config.data.normalization = "imagenet"


def mobilenet_v2_embedded(config):
    """Half width, 128 filters: a DeepLabv3+ that learns the embedded scenes in minutes."""
    config.model.width_multiplier = 0.5
    config.model.aspp_channels = 128
    config.model.decoder_channels = 128
    config.model.batch_norm_decay = 0.95  # 0.9997 would still be at its start after 1000 steps
    config.optim.learning_rate = 0.4
    config.train.batch_size = 8
    config.train.steps = 1000
    config.train.eval_every = 500
    config.train.checkpoint_every = 250


VARIANTS = {
    "xception_41": xception_41,
    "xception_65": xception_65,
    "xception_71": xception_71,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v2_torch": mobilenet_v2_torch,
}
EMBEDDED = {"mobilenet_v2": mobilenet_v2_embedded}


def get_config(preset: str = ""):
    config = common.compose(preset, VARIANTS, default="xception_65", embedded=EMBEDDED)
    config.model.name = "v3plus"
    return config
