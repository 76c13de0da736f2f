"""Every row of the tables of [FCN], [V1], [V2], [V3] and [V3+] as one command.

    python experiments/papers.py

writes the table of experiments/README.md from `ROWS`; a test builds every distinct graph of them.
Rows that share their training differ in what evaluates it: run the first with --mode=train, the
others with --mode=eval on its workdir.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- papers.py: begin -->\n", "<!-- papers.py: end -->\n"

COCO, SERVER = "a run on `coco` first", "test server"
JFT = "JFT-300M (not public)"


class Row(NamedTuple):
    """A published figure and what runs it.

    Attributes:
      table, label: where it stands.
      published: mean IoU in %, unless the label says otherwise.
      config: file of configs/ and preset, "v1.py:largefov".
      overrides: {"model.multi_grid": (1, 2, 1)}: what differs from the preset.
      dataset: of the preset.
      needs: what it waits for.
    """

    table: str
    label: str
    published: str
    config: str
    overrides: Mapping[str, object] = MappingProxyType({})
    dataset: str = "voc"
    needs: tuple[str, ...] = ()

    def arguments(self) -> str:
        words = [f"--config=configs/{self.config},{self.dataset}"]
        for key, value in self.overrides.items():
            text = f"'{value}'" if isinstance(value, tuple) else str(value)
            text = f'"{value}"' if isinstance(value, dict) else text
            words.append(f"--config.{key}={text}")
        return " ".join(words)


def _rows(table, *rows, **common):
    """Rows of one table: (label, published, config, overrides, needs...)."""
    return [
        Row(table, label, str(published), config, overrides, needs=tuple(needs), **common)
        for label, published, config, overrides, *needs in rows
    ]


MSC = {"model.input_scales": (0.5, 0.75, 1.0)}
AUG = {"data.min_scale_factor": 0.5, "data.max_scale_factor": 1.5}
TRAINVAL = {"data.train_split": "trainval"}
CRF = {"eval.crf": True}  # its widths by --mode=tune_crf
B30, B10 = {"train.batch_size": 30}, {"train.batch_size": 10}
STEP = {"optim.schedule": "step"}

FCN_32S, FCN_16S, FCN_8S = (f"fcn.py:vgg16_{stride}s" for stride in (32, 16, 8))
LATE = {"data.channels": "rgb_hha", "model.channel_groups": (3, 3)}
FCN_ROWS = [
    *_rows(
        "[FCN] Table 1, VOC 2011 val",
        ("FCN-AlexNet", 39.8, "fcn.py:alexnet_32s", {"data.train_split": "train"}),
        ("FCN-VGG16", 56.0, FCN_32S, {"data.train_split": "train"}),
        ("FCN-GoogLeNet", 42.5, "fcn.py:googlenet_32s", {"data.train_split": "train"}),
    ),
    *_rows(
        "[FCN] Table 2, VOC 2011 val",
        ("FCN-32s", 59.4, FCN_32S, {}),
        ("FCN-16s, init_from FCN-32s", 62.4, FCN_16S, {}),
        ("FCN-8s, init_from FCN-16s", 62.7, FCN_8S, {}),
        ("FCN-8s, VOC 2012 test", 62.2, FCN_8S, {}, SERVER),
    ),
    *_rows(
        "[FCN] Table 4, NYUDv2",
        ("FCN-32s RGB", 29.2, FCN_32S, {}),
        ("FCN-32s RGBD", 30.5, FCN_32S, {"data.channels": "rgb_depth"}),
        ("FCN-32s HHA", 24.2, FCN_32S, {"data.channels": "hha"}),
        ("FCN-32s RGB-HHA", 32.8, FCN_32S, LATE),
        ("FCN-16s RGB-HHA", 34.0, FCN_16S, LATE),
        dataset="nyudv2",
    ),
    *_rows(
        "[FCN] Table 5, SIFT Flow",
        ("FCN-16s, semantic and geometric", 39.5, FCN_16S, {"model.heads": {"geometry": 3}}),
        dataset="sift_flow",
    ),
    *_rows(
        "[FCN] PASCAL-Context",
        ("FCN-8s", 35.1, FCN_8S, {}),
        dataset="pascal_context_59",
    ),
]

V1_NETS = [
    ("7x7", "7x7", 64.38, 67.64),
    ("4x4, rate 4", "4x4_r4", 59.80, 63.74),
    ("4x4, rate 8", "4x4_r8", 63.41, 67.14),
    ("3x3, rate 12 (LargeFOV)", "largefov", 62.25, 67.64),
]
V1_VAL = [
    ("DeepLab", "4x4_r4", 59.80, 63.74),
    ("DeepLab-MSc", "4x4_r4_msc", 61.30, 65.21),
    ("DeepLab-7x7", "7x7", 64.38, 67.64),
    ("DeepLab-LargeFOV", "largefov", 62.25, 67.64),
    ("DeepLab-MSc-LargeFOV", "largefov_msc", 64.21, 68.70),
]
V1_TEST = [
    ("DeepLab-CRF", "4x4_r4", 66.4),
    ("DeepLab-MSc-CRF", "4x4_r4_msc", 67.1),
    ("DeepLab-CRF-7x7", "7x7", 70.3),
    ("DeepLab-CRF-LargeFOV", "largefov", 70.3),
    ("DeepLab-MSc-CRF-LargeFOV", "largefov_msc", 71.6),
]


def _with_crf(table, nets, file, **common):
    """Each network before and after the CRF: two rows."""
    rows = []
    for label, preset, before, after in nets:
        rows.append((label, before, f"{file}:{preset}", {}))
        rows.append((f"{label}, CRF", after, f"{file}:{preset}", CRF))
    return _rows(table, *rows, **common)


V1_ROWS = [
    *_with_crf("[V2] Table 1", V1_NETS, "v1.py"),
    *_with_crf("[V1] val", V1_VAL, "v1.py"),
    *_rows(
        "[V1] test",
        *((label, iou, f"v1.py:{net}", TRAINVAL | CRF, SERVER) for label, net, iou in V1_TEST),
    ),
]

SCHEDULES = [
    ("step, batch 30, 6K", 62.25, B30 | STEP | {"train.steps": 6000}),
    ("poly, batch 30, 6K", 63.42, B30 | {"train.steps": 6000}),
    ("poly, batch 30, 10K", 64.90, B30 | {"train.steps": 10_000}),
    ("poly, batch 10, 10K", 64.71, B10 | {"train.steps": 10_000}),
    ("poly, batch 10, 20K", 65.88, B10),
]
TABLE_3 = [
    ("LargeFOV", "vgg_largefov", 65.76, 69.84),
    ("ASPP-S", "vgg_aspp_s", 66.98, 69.73),
    ("ASPP-L", "vgg_aspp_l", 68.96, 71.57),
]
V2_ROWS = [
    *_rows("[V2] Table 2", *((a, b, "v2.py:vgg_largefov", c) for a, b, c in SCHEDULES)),
    *_rows(
        "[V2] test, LargeFOV",
        ("step", 65.1, "v2.py:vgg_largefov", SCHEDULES[0][2] | TRAINVAL, SERVER),
        ("poly", 67.7, "v2.py:vgg_largefov", TRAINVAL, SERVER),
    ),
    *_with_crf("[V2] Table 3", TABLE_3, "v2.py"),
    *_rows("[V2] test", ("ASPP-L, CRF", 72.6, "v2.py:vgg_aspp_l", TRAINVAL | CRF, SERVER)),
    *_rows(
        "[V2] Table 4",
        ("ResNet-101", 68.72, "v2.py:resnet", {}),
        ("MSC", 71.27, "v2.py:resnet", MSC),
        ("MSC, COCO", 73.28, "v2.py:resnet", MSC, COCO),
        ("MSC, COCO, Aug", 74.87, "v2.py:resnet", MSC | AUG, COCO),
        ("MSC, COCO, Aug, LargeFOV", 75.54, "v2.py:resnet_largefov", MSC | AUG, COCO),
        ("MSC, COCO, Aug, ASPP", 76.35, "v2.py:resnet_aspp", MSC | AUG, COCO),
        ("MSC, COCO, Aug, ASPP, CRF", 77.69, "v2.py:resnet_aspp", MSC | AUG | CRF, COCO),
        ("the same, test", 79.7, "v2.py:resnet_aspp", MSC | AUG | TRAINVAL | CRF, COCO, SERVER),
    ),
    *_rows(
        "[V2] PASCAL-Context",
        ("VGG LargeFOV", 37.6, "v2.py:vgg_largefov", {}),
        ("VGG LargeFOV, CRF", 39.6, "v2.py:vgg_largefov", CRF),
        ("ResNet-101", 39.6, "v2.py:resnet", {}),
        ("MSC", 41.4, "v2.py:resnet", MSC),
        ("MSC, COCO, Aug", 42.9, "v2.py:resnet", MSC | AUG, COCO),
        ("MSC, COCO, Aug, LargeFOV", 43.5, "v2.py:resnet_largefov", MSC | AUG, COCO),
        ("MSC, COCO, Aug, ASPP", 44.7, "v2.py:resnet_aspp", MSC | AUG, COCO),
        ("MSC, COCO, Aug, ASPP, CRF", 45.7, "v2.py:resnet_aspp", MSC | AUG | CRF, COCO),
        dataset="pascal_context",
    ),
    *_rows(
        "[V2] PASCAL-Person-Part",
        ("ResNet-101", 58.90, "v2.py:resnet", {}),
        ("MSC, Aug", 63.10, "v2.py:resnet", MSC | AUG),
        ("MSC, COCO, Aug", 64.40, "v2.py:resnet", MSC | AUG, COCO),
        ("MSC, COCO, Aug, CRF", 64.94, "v2.py:resnet", MSC | AUG | CRF, COCO),
        ("MSC, COCO, Aug, LargeFOV", 62.18, "v2.py:resnet_largefov", MSC | AUG, COCO),
        ("MSC, COCO, Aug, ASPP", 62.76, "v2.py:resnet_aspp", MSC | AUG, COCO),
        dataset="person_part",
    ),
    *_rows(
        "[V2] Cityscapes",
        ("VGG LargeFOV, half size", 62.97, "v2.py:vgg_largefov", {}, "half-size images"),
        ("VGG LargeFOV, half size, CRF", 64.18, "v2.py:vgg_largefov", CRF, "half-size images"),
        ("VGG LargeFOV", 64.89, "v2.py:vgg_largefov", {}),
        ("VGG LargeFOV, CRF", 65.94, "v2.py:vgg_largefov", CRF),
        ("ResNet-101", 66.6, "v2.py:resnet", {}),
        ("LargeFOV", 69.2, "v2.py:resnet_largefov", {}),
        ("ASPP", 70.4, "v2.py:resnet_aspp", {}),
        ("ASPP, Aug", 71.0, "v2.py:resnet_aspp", AUG),
        ("ASPP, Aug, CRF", 71.4, "v2.py:resnet_aspp", AUG | CRF),
        ("ASPP, Aug, CRF, test", 70.4, "v2.py:resnet_aspp", AUG | CRF, SERVER),
        ("pre-release, test", 63.1, "v2.py:vgg_largefov", CRF, SERVER),
        ("pre-release, weak labels, test", 64.8, "v2.py:vgg_largefov", CRF, SERVER),
        dataset="cityscapes",
    ),
]

GRIDS = {
    (1, 1, 1): (68.39, 73.21, 75.34, 75.76),
    (1, 2, 1): (70.23, 75.67, 76.09, 76.66),
    (1, 2, 3): (73.14, 75.78, 75.96, 76.11),
    (1, 2, 4): (73.45, 75.74, 75.85, 76.02),
    (2, 2, 2): (71.45, 74.30, 74.70, 74.62),
}
AT_8 = {"eval.model.output_stride": 8}
SCALES = {"eval.eval_scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)}
FLIPS = SCALES | {"eval.add_flipped_images": True}
BOOTSTRAP = {"data.bootstrap_classes": (2, 9, 11, 16, 18)}
V3_ROWS = [
    *_rows(
        "[V3] Table 4, cascade",
        *(
            (
                f"block{4 + i}, multi-grid {grid}",
                iou,
                "v3.py:cascade",
                {"model.blocks": 4 + i, "model.multi_grid": grid},
            )
            for grid, figures in GRIDS.items()
            for i, iou in enumerate(figures)
        ),
    ),
    *_rows(
        "[V3] Table 6, ASPP",
        ("OS 16", 77.21, "v3.py:aspp", {}),
        ("eval OS 8", 78.51, "v3.py:aspp", AT_8),
        ("eval OS 8, MS", 79.45, "v3.py:aspp", AT_8 | SCALES),
        ("eval OS 8, MS, flip", 79.77, "v3.py:aspp", AT_8 | FLIPS),
    ),
    *_rows(
        "[V3] test",
        ("ASPP, COCO", 85.7, "v3.py:aspp_trainval", AT_8 | FLIPS | BOOTSTRAP, COCO, SERVER),
        ("ASPP, JFT", 86.9, "v3.py:aspp_trainval", AT_8 | FLIPS | BOOTSTRAP, JFT, SERVER),
    ),
    *_rows(
        "[V3] Cityscapes test",
        ("ASPP", 81.3, "v3.py:aspp_trainval", AT_8 | FLIPS, SERVER),
        dataset="cityscapes",
    ),
]

RESNET, XCEPTION = "v3plus.py:resnet_101", "v3plus.py:xception_65"
NO_DECODER = {"model.decoder_output_stride": None}
DENSE = {"model.separable": False}
OS32 = {"model.output_stride": 32}
ONE = {"model.decoder_convs": 1}
PLAIN = NO_DECODER | DENSE
V3PLUS_ROWS = [
    *_rows(
        "[V3+] Table 1, channels of the 1x1",
        *(
            (str(channels), iou, RESNET, ONE | {"model.low_level_channels": channels})
            for channels, iou in [(8, 77.61), (16, 77.92), (32, 78.16), (48, 78.21), (64, 77.94)]
        ),
    ),
    *_rows(
        "[V3+] Table 2, decoder",
        ("Conv2, [3x3, 256]", 78.21, RESNET, ONE),
        ("Conv2, [3x3, 256] x 2", 78.85, RESNET, {}),
        ("Conv2, [3x3, 256] x 3", 78.02, RESNET, {"model.decoder_convs": 3}),
        ("Conv2, [3x3, 128]", 77.25, RESNET, ONE | {"model.decoder_channels": 128}),
        ("Conv2, [1x1, 256]", 78.07, RESNET, ONE | {"model.decoder_kernel_size": 1}),
        ("Conv2 + Conv3, [3x3, 256]", 78.61, RESNET, {"model.decoder_output_stride": (8, 4)}),
    ),
    *_rows(
        "[V3+] Table 3, ResNet-101",
        ("OS 16", 77.21, RESNET, NO_DECODER),
        ("eval OS 8", 78.51, RESNET, NO_DECODER | AT_8),
        ("eval OS 8, MS", 79.45, RESNET, NO_DECODER | AT_8 | SCALES),
        ("eval OS 8, MS, flip", 79.77, RESNET, NO_DECODER | AT_8 | FLIPS),
        ("decoder, OS 16", 78.85, RESNET, {}),
        ("decoder, OS 16, MS", 80.09, RESNET, SCALES),
        ("decoder, OS 16, MS, flip", 80.22, RESNET, FLIPS),
        ("decoder, eval OS 8", 79.35, RESNET, AT_8),
        ("decoder, eval OS 8, MS", 80.43, RESNET, AT_8 | SCALES),
        ("decoder, eval OS 8, MS, flip", 80.57, RESNET, AT_8 | FLIPS),
        ("OS 32", 75.43, RESNET, OS32 | NO_DECODER),
        ("decoder, OS 32", 77.37, RESNET, OS32),
        ("decoder, OS 32, eval OS 16", 77.80, RESNET, OS32 | {"eval.model.output_stride": 16}),
        ("decoder, OS 32, eval OS 8", 77.92, RESNET, OS32 | AT_8),
    ),
    *_rows(
        "[V3+] Table 5, Xception-65",
        ("OS 16", 79.17, XCEPTION, PLAIN),
        ("OS 16, MS", 80.57, XCEPTION, PLAIN | SCALES),
        ("OS 16, MS, flip", 80.79, XCEPTION, PLAIN | FLIPS),
        ("eval OS 8", 79.64, XCEPTION, PLAIN | AT_8),
        ("eval OS 8, MS", 81.15, XCEPTION, PLAIN | AT_8 | SCALES),
        ("eval OS 8, MS, flip", 81.34, XCEPTION, PLAIN | AT_8 | FLIPS),
        ("decoder, OS 16", 79.93, XCEPTION, DENSE),
        ("decoder, OS 16, MS", 81.38, XCEPTION, DENSE | SCALES),
        ("decoder, OS 16, MS, flip", 81.44, XCEPTION, DENSE | FLIPS),
        ("decoder, eval OS 8", 80.22, XCEPTION, DENSE | AT_8),
        ("decoder, eval OS 8, MS", 81.60, XCEPTION, DENSE | AT_8 | SCALES),
        ("decoder, eval OS 8, MS, flip", 81.63, XCEPTION, DENSE | AT_8 | FLIPS),
        ("decoder, SC, OS 16", 79.79, XCEPTION, {}),
        ("decoder, SC, OS 16, MS, flip", 81.21, XCEPTION, FLIPS),
        ("decoder, SC, eval OS 8", 80.02, XCEPTION, AT_8),
        ("decoder, SC, eval OS 8, MS, flip", 81.39, XCEPTION, AT_8 | FLIPS),
        ("decoder, SC, COCO", 82.20, XCEPTION, {}, COCO),
        ("decoder, SC, COCO, MS, flip", 83.34, XCEPTION, FLIPS, COCO),
        ("decoder, SC, COCO, eval OS 8", 82.45, XCEPTION, AT_8, COCO),
        ("decoder, SC, COCO, eval OS 8, MS, flip", 83.58, XCEPTION, AT_8 | FLIPS, COCO),
        ("decoder, SC, JFT", 83.03, XCEPTION, {}, JFT),
        ("decoder, SC, JFT, MS, flip", 84.22, XCEPTION, FLIPS, JFT),
        ("decoder, SC, JFT, eval OS 8", 83.39, XCEPTION, AT_8, JFT),
        ("decoder, SC, JFT, eval OS 8, MS, flip", 84.56, XCEPTION, AT_8 | FLIPS, JFT),
    ),
    *_rows(
        "[V3+] test",
        ("Xception-65", 87.8, f"{XCEPTION}_trainval", AT_8 | FLIPS, COCO, SERVER),
        ("Xception-65, JFT", 89.0, f"{XCEPTION}_trainval", AT_8 | FLIPS, JFT, SERVER),
    ),
    *_rows(
        "[V3+] Fig. 5, trimap, gain at the smallest width",
        ("ResNet-101, decoder", "+4.8", RESNET, {}),
        ("Xception-65, decoder", "+5.4", XCEPTION, {}),
    ),
    *_rows(
        "[V3+] Table 4, top-1 / top-5 error",
        ("ResNet-101", "22.40 / 6.02", "imagenet.py:resnet_101_beta", {}),
        (
            "Xception-65, its paper's depthwise layers",
            "20.19 / 5.17",
            "imagenet.py:xception_65",
            {"model.xception_depthwise": "norm_relu"},
        ),
        (
            "without batch norm and ReLU after them",
            "+0.75 / +0.29",
            "imagenet.py:xception_65",
            {"model.xception_depthwise": "bare"},
        ),
        dataset="imagenet",
    ),
    *_rows(
        "[V3+] Table 7, Cityscapes val",
        ("Xception-65", 77.33, XCEPTION, NO_DECODER),
        ("decoder", 78.79, XCEPTION, {}),
        ("decoder, no image-level features", 79.14, XCEPTION, {"model.image_pooling": False}),
        ("Xception-71", 79.55, "v3plus.py:xception_71", {"model.image_pooling": False}),
        (
            "Xception-71, test",
            82.1,
            "v3plus.py:xception_71_trainval",
            {"model.image_pooling": False},
            SERVER,
        ),
        dataset="cityscapes",
    ),
]
ROWS = FCN_ROWS + V1_ROWS + V2_ROWS + V3_ROWS + V3PLUS_ROWS


def table() -> str:
    lines = [
        "| table | row | mean IoU, % | `python -m deeplab_jax.main ...` | waits for |",
        "|---|---|---|---|---|",
    ]
    for row in ROWS:
        needs = ", ".join(row.needs)
        label = row.label.replace("|", "/")
        lines.append(f"| {row.table} | {label} | {row.published} | `{row.arguments()}` | {needs} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + BEGIN + table() + END + after)


if __name__ == "__main__":
    main()
