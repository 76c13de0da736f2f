"""[V3+] Table 7: Cityscapes."""

from experiments.rows import NO_DECODER, SERVER, XCEPTION, rows

NOT_POOLED = {"model.image_pooling": False}
ROWS = rows(
    "[V3+] Table 7, Cityscapes val",
    ("Xception-65", 77.33, XCEPTION, NO_DECODER),
    ("decoder", 78.79, XCEPTION, {}),
    ("decoder, no image-level features", 79.14, XCEPTION, NOT_POOLED),
    ("Xception-71", 79.55, "v3plus.py:xception_71", NOT_POOLED),
    ("Xception-71, test", 82.1, "v3plus.py:xception_71_trainval", NOT_POOLED, SERVER),
    dataset="cityscapes",
)
