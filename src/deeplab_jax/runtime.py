"""The machine: devices, metrics on disk, traces. No segmentation."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deeplab_jax.errors import ConfigError
from deeplab_jax.output import Progress as Progress
from deeplab_jax.output import say, write_whole

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def make_deterministic() -> None:
    """Lets XLA choose only programs for a GPU that give the same bits in every run.

    Sums whose order is left to chance, and choices by the clock between algorithms, are replaced or
    refused: programs take more time. On a CPU runs repeat without it. Child processes inherit it.

    Raises:
      ConfigError: if JAX has started its backends, which read this once.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if DETERMINISTIC in flags.split():
        return
    number = jax.config.jax_num_cpu_devices
    try:  # of all that is public, this alone JAX refuses once the backends have started
        jax.config.update("jax_num_cpu_devices", number + 2)
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError as error:
        raise ConfigError(
            "deterministic=True comes too late, JAX runs already: set it before the first "
            f"computation of the program, or start it with XLA_FLAGS={DETERMINISTIC}"
        ) from error
    os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()


def data_mesh() -> jax.sharding.Mesh:
    """One mesh over all devices, with the axis "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of state that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(batch: Any, mesh: jax.sharding.Mesh) -> Any:
    """Puts a host's share of a batch on the mesh, split along its first axis."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def check_batch_size(keyword: str, batch_size: int, devices: int) -> None:
    """Raises ConfigError unless the batch divides over the devices."""
    if batch_size < 1 or batch_size % devices:
        near = max(devices, round(batch_size / devices) * devices)
        raise ConfigError(
            f"{keyword}={batch_size} does not divide over {devices} devices; {near} would"
        )


class MetricWriter:
    """Appends one JSON object a line to metrics.jsonl; NaN and infinity become null."""

    def __init__(self, path: Path):
        self.path = path

    def forget_after(self, step: int) -> None:
        """Drops the lines of later steps, which a resumed run is about to write again."""
        if not self.path.exists():
            return
        lines = self.path.read_text().splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) < len(lines):
            write_whole(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, values: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(finite(values), allow_nan=False) + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # the torn last line of a killed run


def finite(value: Any) -> Any:
    """`value` as plain JSON types; numbers that JSON lacks become None."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [finite(item) for item in value]
    if isinstance(value, (np.generic, jax.Array)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


@contextlib.contextmanager
def profile(folder: Path | None):
    """Traces what runs inside into `folder`, for ui.perfetto.dev and XProf; None: nothing."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(folder, create_perfetto_trace=True):
        yield
    traces = sorted(folder.rglob("perfetto_trace.json.gz"))
    say(f"profile: open {traces[-1] if traces else folder} in ui.perfetto.dev")


class StepProfile:
    """Traces a few training steps, once the first ones have compiled and settled."""

    SKIPPED, TRACED = 3, 5

    def __init__(self, folder: Path | None, first_step: int):
        self.folder = folder
        self.start = first_step + self.SKIPPED
        self.stack = contextlib.ExitStack()

    def before(self, step: int, figures: Any) -> None:
        """Call before each step, with what the last one returned."""
        if self.folder is not None and step in (self.start, self.start + self.TRACED):
            jax.block_until_ready(figures)  # whole steps, not parts of their neighbours
            self.stack.close()
            if step == self.start:
                self.stack.enter_context(profile(self.folder))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()
