"""[FCN] Appendix A: what ground truth made coarser scores. No network: `measured` is the table."""

from collections.abc import Mapping
from typing import Any

from experiments.fcn_upper_bounds import FACTORS, PAPER, WAYS, upper_bounds
from experiments.rows import rows

ROWS = rows(
    "[FCN] Appendix A",
    *(
        (f"factor {factor}, {way}", paper, "", {})
        for way in WAYS
        for factor, paper in zip(FACTORS, PAPER)
    ),
)


def measured(overrides: Mapping[str, Any]) -> dict[str, float]:
    """{label of a row: mean IU}, of data.root in VOC's layout and eval.split."""
    root, split = overrides.get("data.root", ""), overrides.get("eval.split", "val")
    _, bounds = upper_bounds(root, split)
    values = [value for bound in bounds.values() for value in bound]
    return {row.label: value for row, value in zip(ROWS, values)}
