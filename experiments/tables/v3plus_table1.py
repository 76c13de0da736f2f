"""[V3+] Table 1: channels that the decoder reduces the low-level features to."""

from experiments.rows import ONE, RESNET, rows

ROWS = rows(
    "[V3+] Table 1, channels of the 1x1",
    *(
        (str(channels), iou, RESNET, ONE | {"model.low_level_channels": channels})
        for channels, iou in [(8, 77.61), (16, 77.92), (32, 78.16), (48, 78.21), (64, 77.94)]
    ),
)
