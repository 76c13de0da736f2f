"""DeepLab v2 (arXiv 1606.00915): atrous spatial pyramid pooling, the poly schedule, ResNet-101.

    python -m deeplab_jax.main --config=configs/v2.py:resnet_aspp,voc --config.init_from=COCO \\
        --config.data.root=VOC2012 --workdir=/tmp/v2 \\
        --config.model.input_scales='(0.5, 0.75, 1.0)'

| preset          | classifiers               | rates         | mean IoU on VOC val             |
| vgg_largefov    | fc6 3x3 - fc7 - fc8       | 12            | 65.76 (Table 3)                 |
| vgg_aspp_s      | four of these, summed     | 2, 4, 8, 12   | 66.98                           |
| vgg_aspp_l      | four of these, summed     | 6, 12, 18, 24 | 68.96                           |
| resnet          | 1x1                       |               | 68.72 (Table 4), 71.27 with MSC |
| resnet_largefov | 3x3                       | 12            | 75.54 with MSC, COCO and Aug    |
| resnet_aspp     | four 3x3, summed          | 6, 12, 18, 24 | 76.35 with MSC, COCO and Aug    |

MSC: `input_scales` as above, a loss a scale and one on their maximum. Aug: random scales,
`--config.data.min_scale_factor=0.5 --config.data.max_scale_factor=1.5`. COCO: start from it.
`configs/v2.py` alone trains v2's head on a small backbone, on the embedded scenes.
"""

import common

ASPP_S, ASPP_L = (2, 4, 8, 12), (6, 12, 18, 24)


def recipe(config):
    """Sec. 4.1.1: 20000 steps of 10, poly."""
    config.model.output_stride = 8
    config.data.crop_size = (321, 321)
    config.data.min_scale_factor = config.data.max_scale_factor = 1.0
    config.loss.upsample_logits = False
    config.train.batch_size = 10
    config.train.steps = 20_000
    config.optim.learning_rate = 0.001
    config.optim.last_layer_gradient_multiplier = 10.0
    config.optim.last_layers_contain_logits_only = True
    config.optim.weight_decay = 5e-4


def vgg(*rates):
    def configure(config):
        recipe(config)
        config.model.backbone = "vgg16"
        config.model.atrous_rates = rates
        config.data.normalization = "imagenet"

    return configure


def resnet(*rates):
    def configure(config):
        recipe(config)
        config.model.backbone = "resnet_101_caffe"
        config.model.atrous_rates = rates
        config.data.normalization = "caffe_bgr"
        config.data.scale_factor_step_size = 0.0  # what Aug draws from
        config.train.fine_tune_batch_norm = False
        config.optim.learning_rate = 2.5e-4  # the released solver's

    return configure


def mobilenet_v2(config):
    """Not the paper's: a backbone that learns the embedded scenes in minutes."""
    resnet(*ASPP_L)(config)
    config.model.backbone = "mobilenet_v2"
    config.data.normalization = "zero_mean"
    config.train.fine_tune_batch_norm = True


VARIANTS = {
    "vgg_largefov": vgg(12),
    "vgg_aspp_s": vgg(*ASPP_S),
    "vgg_aspp_l": vgg(*ASPP_L),
    "resnet": resnet(),
    "resnet_largefov": resnet(12),
    "resnet_aspp": resnet(*ASPP_L),
    "mobilenet_v2": mobilenet_v2,
}
EMBEDDED = {"mobilenet_v2": common.embedded_without_norm(2, 4, 6, 8)}


def get_config(preset: str = ""):
    config = common.compose(preset, VARIANTS, default="resnet_aspp", embedded=EMBEDDED)
    config.model.name = "v2"
    return config
