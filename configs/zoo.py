"""Published models by name: the graph, the preprocessing and the evaluation their weights need.

    python -m deeplab_jax.main --mode=eval --config=configs/zoo.py:xception65_coco_voc_trainaug \\
        --config.init_from=WEIGHTS --config.data.root=VOC2012 --workdir=/tmp/zoo

NAME is one scale at the output stride below; NAME_ms is output stride 8, the scales below and
mirrored images. Instead of a name, a path: `configs/zoo.py:WEIGHTS` takes any file that
`--mode=import` reads, or a folder it wrote, with the model that the file says it is.

| name (TensorFlow's model zoo)          | OS | scales of _ms | mean IoU of the zoo, % |
| mobilenetv2_dm05_coco_voc_trainaug     | 16 |               | 70.19 val              |
| mobilenetv2_dm05_coco_voc_trainval     | 8  |               | 71.83 test             |
| mobilenetv2_coco_voc_trainaug          | 16 | 0.5..1.75     | 75.32, _ms 77.33 val   |
| mobilenetv2_coco_voc_trainval          | 8  | 0.5..1.75     | _ms 80.25 test         |
| xception65_coco_voc_trainaug           | 16 | 0.5..1.75     | 82.20, _ms 83.58 val   |
| xception65_coco_voc_trainval           | 8  | 0.5..1.75     | _ms 87.80 test         |
| mobilenetv2_coco_cityscapes_trainfine  | 16 | 0.75..1.25    | 70.71, _ms 73.57 val   |
| mobilenetv3_large_cityscapes_trainfine | 32 |               | 72.41 val              |
| mobilenetv3_small_cityscapes_trainfine | 32 |               | 68.99 val              |
| xception65_cityscapes_trainfine        | 16 | 0.75..1.25    | 78.79, _ms 80.42 val   |
| xception71_dpc_cityscapes_trainfine    | 16 |               | 80.31 val              |
| xception71_dpc_cityscapes_trainval     | 8  | 0.75..2       | _ms 82.66 test         |
| mobilenetv2_ade20k_train               | 16 |               | 32.04 val, resized     |
| xception65_ade20k_train                | 8  | 0.5..1.75     | _ms 45.65 val, resized |

"resized": the zoo evaluated ADE20K with images resized to 257 or 513 px, and their masks, too; here
`--config.eval.resize=513` resizes the images, and otherwise they keep their size.
"""

from pathlib import Path

import common

from deeplab_jax import importers

# Architectures, as keywords of `config.model`.
MOBILENET_V2 = {"name": "v3", "backbone": "mobilenet_v2", "atrous_rates": None}
XCEPTION_65 = {"name": "v3plus", "backbone": "xception_65", "decoder_output_stride": 4}
XCEPTION_71_DPC = {
    "name": "v3plus",
    "backbone": "xception_71",
    "context": "dpc",
    "decoder_output_stride": 4,
}
MOBILENET_V3 = {
    "name": "v3plus",
    "context": "lraspp",
    "atrous_rates": None,
    "aspp_channels": 128,
    "decoder_output_stride": 8,
    "image_pooling_crop_size": (769, 769),
    "image_pooling_stride": (4, 5),
}
MOBILENET_V3_LARGE = MOBILENET_V3 | {"backbone": "mobilenet_v3_large_seg"}
MOBILENET_V3_SMALL = MOBILENET_V3 | {"backbone": "mobilenet_v3_small_seg"}
HALF = {"width_multiplier": 0.5}


def ade20k(config):
    """150 classes and 0, "other", which counts for nothing; images/ and masks/."""
    common.folder(config)
    config.model.num_classes = 151
    config.data.ignore_label = 0


TO_175 = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
TO_125 = (0.75, 1.0, 1.25)
TO_2 = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
# name: (architecture, data, output stride, scales of NAME_ms)
PUBLISHED = {
    "mobilenetv2_dm05_coco_voc_trainaug": (MOBILENET_V2 | HALF, common.voc, 16, None),
    "mobilenetv2_dm05_coco_voc_trainval": (MOBILENET_V2 | HALF, common.voc, 8, None),
    "mobilenetv2_coco_voc_trainaug": (MOBILENET_V2, common.voc, 16, TO_175),
    "mobilenetv2_coco_voc_trainval": (MOBILENET_V2, common.voc, 8, TO_175),
    "xception65_coco_voc_trainaug": (XCEPTION_65, common.voc, 16, TO_175),
    "xception65_coco_voc_trainval": (XCEPTION_65, common.voc, 8, TO_175),
    "mobilenetv2_coco_cityscapes_trainfine": (MOBILENET_V2, common.cityscapes, 16, TO_125),
    "mobilenetv3_large_cityscapes_trainfine": (MOBILENET_V3_LARGE, common.cityscapes, 32, None),
    "mobilenetv3_small_cityscapes_trainfine": (MOBILENET_V3_SMALL, common.cityscapes, 32, None),
    "xception65_cityscapes_trainfine": (XCEPTION_65, common.cityscapes, 16, TO_125),
    "xception71_dpc_cityscapes_trainfine": (XCEPTION_71_DPC, common.cityscapes, 16, None),
    "xception71_dpc_cityscapes_trainval": (XCEPTION_71_DPC, common.cityscapes, 8, TO_2),
    "mobilenetv2_ade20k_train": (MOBILENET_V2, ade20k, 16, None),
    "xception65_ade20k_train": (XCEPTION_65, ade20k, 8, TO_175),
}
VARIANTS = {
    **PUBLISHED,
    **{
        f"{name}_ms": (model, data, 8, scales)
        for name, (model, data, _, scales) in PUBLISHED.items()
        if scales
    },
}


def get_config(preset: str = ""):
    config = common.base()
    if preset not in VARIANTS:
        path = Path(preset).expanduser()
        if not preset or not (path.exists() or path.with_name(f"{path.name}.index").exists()):
            raise ValueError(
                f"no published model and no weight file {preset!r}; models: {', '.join(VARIANTS)}"
            )
        return _of_file(config, str(path))
    model, data, output_stride, scales = VARIANTS[preset]
    data(config)
    # The model first: a dataset sets the classes, these weights' atrous rates are their own.
    config.model.update({"atrous_rates": "auto", "output_stride": output_stride} | model)
    if preset.endswith("_ms"):
        for settings in (config.eval, config.predict):
            settings.eval_scales = scales
            settings.add_flipped_images = True
    return config


def _of_file(config, path: str):
    """What the file says it is, on images of any size; names of VOC where there are 21 classes."""
    found = importers.identify(path)
    if found.trunk:
        raise ValueError(f"{path} is {found.layout}: no model to evaluate; use it as init_from")
    unknown = found.model.keys() - set(config.model)
    if unknown:
        raise ValueError(f"{path}: its header has unknown keywords: {', '.join(sorted(unknown))}")
    common.voc(config) if found.model["num_classes"] == 21 else common.folder(config)
    config.eval.crop_size = None
    config.model.update(found.model)
    config.data.normalization = found.normalization
    config.init_from = path
    return config
