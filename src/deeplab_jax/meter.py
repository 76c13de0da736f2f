"""How fast training is, and what it waits for."""

import contextlib
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np


class Meter:
    """Figures of the steps since the last line: means on the device, times on the host.

    A step waits for data from the end of the step before it until its batch is there. The host,
    which runs ahead of the device, may wait for longer.
    """

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.clock = ThreadPoolExecutor(1, "step-clock")
        self.restart()

    def restart(self) -> None:
        """Measures from now on."""
        self.started = self.resumed = time.monotonic()
        self.figures, self.arrivals, self.ends = [], [], []

    @contextlib.contextmanager
    def paused(self):
        """Leaves out what is done inside."""
        begun = time.monotonic()
        yield
        self.resumed = time.monotonic()
        self.started += self.resumed - begun

    def batch_is_there(self) -> None:
        self.arrivals.append((time.monotonic(), self.resumed))

    def step_began(self, figures: Mapping[str, jax.Array]) -> None:
        self.figures.append(figures)
        self.ends.append(self.clock.submit(_end, figures))

    def finish(self) -> dict[str, float]:
        """Means since the last call; this is where the host waits for the device."""
        figures = jax.device_get(self.figures)
        elapsed = time.monotonic() - self.started
        free = [self.started, *(end.result() for end in self.ends)]
        waits = [
            max(there - max(before, resumed), 0)
            for (there, resumed), before in zip(self.arrivals, free)
        ]
        counted = [f for f in figures if f["sound"]] or figures  # without steps that were skipped
        out = {
            "loss": float(np.mean([f["loss"] for f in counted])),
            "gradient_norm": float(np.mean([f["gradient_norm"] for f in counted])),
            "learning_rate": float(figures[-1]["learning_rate"]),
            "images_per_second": self.batch_size * len(figures) / elapsed,
            "data_wait_share": sum(waits) / elapsed,
        }
        self.restart()
        return out


def _end(figures) -> float:
    """When the device has finished the step."""
    jax.block_until_ready(figures)
    return time.monotonic()
