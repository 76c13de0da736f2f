"""[V3] Table 4: multi-grid in the cascade of blocks."""

from experiments.rows import rows

GRIDS = {
    (1, 1, 1): (68.39, 73.21, 75.34, 75.76),
    (1, 2, 1): (70.23, 75.67, 76.09, 76.66),
    (1, 2, 3): (73.14, 75.78, 75.96, 76.11),
    (1, 2, 4): (73.45, 75.74, 75.85, 76.02),
    (2, 2, 2): (71.45, 74.30, 74.70, 74.62),
}
ROWS = rows(
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
)
