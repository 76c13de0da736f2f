"""FCN (arXiv 1411.4038): classifiers made fully convolutional, at stride 32, 16 and 8.

    python -m deeplab_jax.main --config=configs/fcn.py:vgg16_32s,voc --config.init_from=VGG16 \\
        --config.data.root=VOC2012 --workdir=/tmp/32s
    python -m deeplab_jax.main --config=configs/fcn.py:vgg16_16s,voc --config.init_from=/tmp/32s \\
        --config.data.root=VOC2012 --workdir=/tmp/16s

| preset        | parameters | receptive field | rate | mean IU on VOC 2011 val ([FCN])   |
| alexnet_32s   | 57M        | 355             | 1e-3 | 39.8                              |
| vgg16_32s     | 134M       | 404             | 1e-4 | 56.0; with the SBD masks 59.4     |
| googlenet_32s | 6M         | 907             | 5e-5 | 42.5                              |
| vgg16_16s     | starts from vgg16_32s        | 1e-6 | 62.4                              |
| vgg16_8s      | starts from vgg16_16s        | 1e-8 | 62.7                              |

GoogLeNet is torchvision's, with 3x3 where the paper has 5x5 (model.backbone=googlenet_5x5).
`configs/fcn.py` alone trains PyTorch's plain head on a small backbone, on the embedded scenes.
"""

import common


def recipe(config, rate):
    """Sec. 4.3: whole images, batches of 20, a fixed rate, twice that for biases."""
    config.data.crop_size = config.eval.crop_size = (512, 512)
    config.data.min_scale_factor = config.data.max_scale_factor = 1.0
    config.data.flip = False  # neither mirroring nor jitter helped
    config.model.align_corners = False  # windows of 2x2 begin at the image's edge
    config.train.batch_size = 20
    config.optim.schedule = "constant"
    config.optim.learning_rate = rate
    config.optim.weight_decay = 5e-4


def variant(backbone, rate, skips=None):
    def configure(config):
        config.model.backbone = backbone
        config.model.output_stride = 32
        config.model.decoder_output_stride = skips
        config.model.fc_channels = 4096
        config.model.logits_stddev = 0.0
        config.data.normalization = "zero_mean" if backbone == "googlenet" else "imagenet"
        recipe(config, rate)

    return configure


def mobilenet_v2(config):
    """Not the paper's: a backbone that learns the embedded scenes in minutes."""
    config.model.backbone = "mobilenet_v2"
    recipe(config, 0.007)


VARIANTS = {
    "alexnet_32s": variant("alexnet", 1e-3),
    "vgg16_32s": variant("vgg16", 1e-4),
    "googlenet_32s": variant("googlenet", 5e-5),
    # Sec. 4.2: a hundredth of the rate before.
    "vgg16_16s": variant("vgg16", 1e-6, 16),
    "vgg16_8s": variant("vgg16", 1e-8, 8),
    "mobilenet_v2": mobilenet_v2,
}
EMBEDDED = {"mobilenet_v2": common.embedded}


def get_config(preset: str = ""):
    config = common.compose(preset, VARIANTS, default="vgg16_8s", embedded=EMBEDDED)
    config.model.name = "fcn"
    return config
