"""[V3+] Table 2: the decoder's convolutions and what they refine."""

from experiments.rows import ONE, RESNET, rows

ROWS = rows(
    "[V3+] Table 2, decoder",
    ("Conv2, [3x3, 256]", 78.21, RESNET, ONE),
    ("Conv2, [3x3, 256] x 2", 78.85, RESNET, {}),
    ("Conv2, [3x3, 256] x 3", 78.02, RESNET, {"model.decoder_convs": 3}),
    ("Conv2, [3x3, 128]", 77.25, RESNET, ONE | {"model.decoder_channels": 128}),
    ("Conv2, [1x1, 256]", 78.07, RESNET, ONE | {"model.decoder_kernel_size": 1}),
    ("Conv2 + Conv3, [3x3, 256]", 78.61, RESNET, {"model.decoder_output_stride": (8, 4)}),
)
