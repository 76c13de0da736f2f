"""[V3] Table 6: how the ASPP is evaluated."""

from experiments.rows import AT_8, FLIPS, SCALES, rows

ROWS = rows(
    "[V3] Table 6, ASPP",
    ("OS 16", 77.21, "v3.py:aspp", {}),
    ("eval OS 8", 78.51, "v3.py:aspp", AT_8),
    ("eval OS 8, MS", 79.45, "v3.py:aspp", AT_8 | SCALES),
    ("eval OS 8, MS, flip", 79.77, "v3.py:aspp", AT_8 | FLIPS),
)
