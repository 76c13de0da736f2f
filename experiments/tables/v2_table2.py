"""[V2] Table 2: schedule, batch size and steps."""

from experiments.rows import rows

B30, B10 = {"train.batch_size": 30}, {"train.batch_size": 10}
STEP = {"optim.schedule": "step"}
SCHEDULES = [
    ("step, batch 30, 6K", 62.25, B30 | STEP | {"train.steps": 6000}),
    ("poly, batch 30, 6K", 63.42, B30 | {"train.steps": 6000}),
    ("poly, batch 30, 10K", 64.90, B30 | {"train.steps": 10_000}),
    ("poly, batch 10, 10K", 64.71, B10 | {"train.steps": 10_000}),
    ("poly, batch 10, 20K", 65.88, B10),
]
ROWS = rows("[V2] Table 2", *((a, b, "v2.py:vgg_largefov", c) for a, b, c in SCHEDULES))
