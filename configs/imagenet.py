"""ImageNet classification: what every backbone is pretrained as ([V3+] Table 4).

    python -m deeplab_jax.main --config=configs/imagenet.py:xception_65,imagenet \\
        --config.data.root=ARCHIVES --workdir=/tmp/xception
    python -m deeplab_jax.main --config=configs/v3plus.py:xception_65,voc \\
        --config.init_from=/tmp/xception ...

The second line starts a segmentation from the first one's backbone (fc6 and fc7 of VGG-16, too).

| preset                    | top-1 / top-5 error  | crop | batch | rate                      |
| resnet_101_beta,imagenet  | 22.40 / 6.02 [V3+]   | 299  | 32    | 0.05, x 0.94 in 2 epochs  |
| xception_65,imagenet      | 20.19 / 5.17 [V3+] * | 299  | 32    | 0.05, x 0.94 in 2 epochs  |
| vgg16, alexnet (no norm)  |                      | 224  | 32    | 0.01                      |

* with `model.xception_depthwise=norm_relu`; the preset, as v3plus.py, follows the official code.
Batch and rate are the paper's, a worker each of its fifty, which trained asynchronously; with
larger batches take a larger rate. Steps follow `train.batch_size`, so that it is always 100 epochs
(the paper does not tell how many). `VARIANT,image_folder` reads ROOT/SPLIT/CLASS/*.jpg.
`configs/imagenet.py` alone trains MobileNetV2 at half width on windows of the embedded scenes.
"""

import common

IMAGES, EPOCHS = 1_281_167, 100


def epochs(config, images, count):
    """`count` times through `images`; rate, checkpoint and evaluation go by epochs, too."""
    # A reference each: keys that share one would change together.
    config.train.steps = count * images // config.train.get_ref("batch_size")
    config.train.eval_every = images // config.train.get_ref("batch_size")
    config.train.checkpoint_every = images // config.train.get_ref("batch_size")
    config.optim.learning_rate_decay_step = 2 * images // config.train.get_ref("batch_size")


def recipe(config):
    """Nesterov momentum 0.9, weight decay 4e-5, 299 px; the augmentation of arXiv 1409.4842."""
    config.model.name = "classifier"
    config.model.output_stride = 32
    config.model.num_classes = 1000
    config.data.crop_size = config.eval.crop_size = (299, 299)
    config.data.ignore_label = -1  # every number from 0 may be a class
    config.data.color_jitter = 0.4
    config.loss.label_smoothing = 0.1
    config.optim.nesterov = True
    config.optim.learning_rate = 0.05
    config.optim.schedule = "step"
    config.optim.learning_rate_decay_factor = 0.94
    config.optim.weight_decay = 4e-5
    config.optim.bias_gradient_multiplier = 1.0
    config.train.batch_size = 32
    config.eval.batch_size = 32


def backbone(name, dropout=0.0):
    def configure(config):
        recipe(config)
        config.model.backbone = name
        config.model.dropout = dropout
        if name.endswith("_caffe"):  # as those who start from it see images
            config.data.normalization = "caffe_bgr"

    return configure


def classic(name):
    """AlexNet and VGG-16: fc6 and fc7 of 4096 channels, crops of 224 px."""

    def configure(config):
        backbone(name, 0.5)(config)
        config.model.fc_channels = 4096
        config.data.normalization = "imagenet"
        if name == "alexnet":  # 6x6 features, one window
            config.model.padding = "fixed"
        config.data.crop_size = config.eval.crop_size = (224, 224)
        config.data.color_jitter = config.loss.label_smoothing = 0.0
        config.optim.weight_decay = 5e-4
        if name != "vgg16_bn":  # without batch norm 0.05 diverges
            config.optim.learning_rate = 0.01

    return configure


RESNETS = [f"{name}{suffix}" for name in ("resnet_50", "resnet_101")
           for suffix in ("", "_caffe", "_slim", "_beta")]  # fmt: skip
XCEPTIONS = ["xception_41", "xception_65", "xception_71", "xception_65_jfzhang95"]
MOBILENETS = ["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small",
              "mobilenet_v3_large_seg", "mobilenet_v3_small_seg"]  # fmt: skip
VARIANTS = {
    **{name: backbone(name, 0.5) for name in XCEPTIONS},
    **{name: backbone(name) for name in RESNETS},
    **{name: backbone(name, 0.2) for name in MOBILENETS},
    **{name: classic(name) for name in ("alexnet", "vgg16", "vgg16_bn")},
    "googlenet": backbone("googlenet", 0.2),
    "googlenet_5x5": backbone("googlenet_5x5", 0.4),
}


def shapes(config):
    """Windows of the embedded scenes, a shape in each."""
    config.data.name = "shapes"
    config.data.cache = True
    config.data.crop_size = config.eval.crop_size = (97, 97)
    config.data.min_crop_area = 0.5
    config.data.color_jitter = 0.0
    config.eval.central_fraction = 1.0
    config.eval.batch_size = 50
    config.model.num_classes = 6
    epochs(config, 4000, 10)


def imagenet(config):
    """The official archives, or what was prepared from them, in data.root."""
    config.data.name = "imagenet"
    epochs(config, IMAGES, EPOCHS)


def image_folder(config):
    """A user's own: set data.root, model.num_classes and train.steps, which the rate follows."""
    config.data.name = "image_folder"
    config.optim.schedule = "cosine"
    config.train.eval_every = 1000


def embedded(config):
    """MobileNetV2 at half width, as configs/v3plus.py alone has it."""
    common.embedded(config)
    config.train.batch_size = 32
    config.optim.schedule = "cosine"
    config.optim.learning_rate = 0.1


DATASETS = {"synthetic": shapes, "imagenet": imagenet, "image_folder": image_folder}


def get_config(preset: str = ""):
    return common.compose(
        preset, VARIANTS, "xception_65", {"mobilenet_v2": embedded}, datasets=DATASETS
    )
