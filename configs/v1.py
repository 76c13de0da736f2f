"""DeepLab v1 (arXiv 1412.7062): VGG-16 made dense by atrous convolution, scores at stride 8.

    python -m deeplab_jax.main --config=configs/v1.py:largefov,voc --config.init_from=VGG16 \\
        --config.data.root=VOC2012 --workdir=/tmp/v1

| preset   | fc6: kernel, rate, channels | field of view | mean IoU on VOC val ([V2] Table 1) |
| 7x7      | 7x7, 4, 4096                | 224           | 64.38                              |
| 4x4_r4   | 4x4, 4, 4096                | 128           | 59.80                              |
| 4x4_r8   | 4x4, 8, 4096                | 224           | 63.41                              |
| largefov | 3x3, 12, 1024               | 224           | 62.25                              |

`NAME_msc` adds the predictions from the image and the first four poolings (Sec. 3, "MSc").
`configs/v1.py` alone trains v1's head on a small backbone, on the embedded scenes.
"""

import common

# preset: kernel, rate and channels of fc6.
FC6 = {
    "7x7": (7, 4, 4096),
    "4x4_r4": (4, 4, 4096),
    "4x4_r8": (4, 8, 4096),
    "largefov": (3, 12, 1024),
}


def recipe(config):
    """Sec. 4: 6000 steps at 0.001, the classifier at ten times that, a tenth every 2000."""
    config.data.normalization = "imagenet"
    config.data.crop_size = (321, 321)
    config.data.min_scale_factor = config.data.max_scale_factor = 1.0
    config.loss.upsample_logits = False  # the targets are subsampled by 8
    config.train.batch_size = 20
    config.train.steps = 6000
    config.optim.schedule = "step"
    config.optim.learning_rate = 0.001
    config.optim.learning_rate_decay_step = 2000
    config.optim.last_layer_gradient_multiplier = 10.0
    config.optim.last_layers_contain_logits_only = True
    config.optim.weight_decay = 5e-4


def variant(kernel_size, rate, channels, msc):
    def configure(config):
        config.model.backbone = "vgg16"
        config.model.output_stride = 8
        config.model.fc_kernel_size = kernel_size
        config.model.atrous_rates = (rate,)
        config.model.fc_channels = channels
        config.model.multi_scale_features = msc
        recipe(config)

    return configure


def mobilenet_v2(config):
    """Not the paper's: a backbone that learns the embedded scenes in minutes."""
    variant(3, 12, 256, False)(config)
    config.model.backbone = "mobilenet_v2"
    config.data.normalization = "zero_mean"


VARIANTS = {
    **{name: variant(*fc6, msc=False) for name, fc6 in FC6.items()},
    **{f"{name}_msc": variant(*fc6, msc=True) for name, fc6 in FC6.items()},
    "mobilenet_v2": mobilenet_v2,
}
EMBEDDED = {"mobilenet_v2": common.embedded_without_norm(4)}


def get_config(preset: str = ""):
    config = common.compose(preset, VARIANTS, default="largefov", embedded=EMBEDDED)
    config.model.name = "v1"
    return config
