"""[V3+] Table 3: ResNet-101 with and without decoder, and how it is evaluated."""

from experiments.rows import AT_8, FLIPS, NO_DECODER, RESNET, SCALES, rows

OS32 = {"model.output_stride": 32}
ROWS = rows(
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
)
