"""Published models by name: the graph, the preprocessing and the evaluation their weights need.

    python -m deeplab_jax.main --mode=eval --config=configs/zoo.py:mobilenetv2_coco_voc_trainval \\
        --config.init_from=WEIGHTS --config.data.root=VOC2012 --workdir=/tmp/zoo
"""

import common


def mobilenetv2_coco_voc_trainval(config):
    """DeepLabv3, no decoder, no atrous branches, output stride 8."""
    config.model.name = "v3"
    config.model.backbone = "mobilenet_v2"
    config.model.output_stride = 8
    config.model.atrous_rates = None


VARIANTS = {"mobilenetv2_coco_voc_trainval": mobilenetv2_coco_voc_trainval}


def get_config(preset: str = ""):
    if preset not in VARIANTS:
        raise ValueError(f"no published model {preset!r}; there are: {', '.join(VARIANTS)}")
    config = common.base()
    common.voc(config)
    VARIANTS[preset](config)
    return config
