"""The machine: devices, metrics on disk, traces. No segmentation."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
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


def leads() -> bool:
    """Whether this is the process that writes and speaks for all (the only one, if alone)."""
    return jax.process_index() == 0


def data_mesh(height: int = 1, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """One mesh over devices, with the axes "data" (of the batch) and "height" (of the images).

    Process by process: a process's devices hold a block of the batch, and whole images.

    Args:
      height: devices that share an image, `config.spatial_shards`.
      devices: all there are, of all processes, if None.

    Raises:
      ConfigError: unless the devices of a process fall into groups of `height`.
    """
    devices = jax.devices() if devices is None else devices
    for process in {device.process_index for device in devices}:
        count = sum(device.process_index == process for device in devices)
        if count % height:
            raise ConfigError(
                f"spatial_shards={height}: the {count} devices of process {process} do not "
                "fall into groups of so many"
            )
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return jax.sharding.Mesh(
        np.array(ordered).reshape(-1, height),
        ("data", "height"),
        axis_types=(AxisType.Auto,) * 2,
    )


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


@dataclasses.dataclass(frozen=True)
class SplitOverHeight:
    """A Flax module that is applied to images [B, H, W, C] with a band of rows on each device.

    The rest follows by XLA's propagation: neighbours exchange the rows that a convolution's taps
    reach, however far, and any H will do. The outputs are split likewise.
    """

    module: Any
    mesh: jax.sharding.Mesh

    def apply(self, variables, images, **options):
        return self.module.apply(variables, split_over_height(images, self.mesh), **options)


def spatially(module: Any, mesh: jax.sharding.Mesh) -> Any:
    """`module`, or `SplitOverHeight` where the mesh has devices that share an image."""
    return module if spatial_shards(mesh) == 1 else SplitOverHeight(module, mesh)


def spatial_shards(mesh: jax.sharding.Mesh) -> int:
    """Devices that share an image."""
    return mesh.shape.get("height", 1)


def split_over_height(x: jax.Array, mesh: jax.sharding.Mesh) -> jax.Array:
    """Inside jit: [B, H, ...] with the batch over "data" and the rows over "height", if any."""
    if spatial_shards(mesh) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("data", "height")))


def check_batch_size(keyword: str, batch_size: int, shards: int) -> None:
    """Raises ConfigError unless the batch divides over the devices, or groups of them."""
    if batch_size < 1 or batch_size % shards:
        below = batch_size // shards * shards
        sizes = [size for size in (below, below + shards) if size > 0]
        raise ConfigError(
            f"{keyword}={batch_size} does not divide over {shards} devices; "
            f"{' or '.join(map(str, sizes))} would"
        )


def rounded_up(batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """The next size of a batch that divides over the mesh."""
    shards = mesh.shape["data"]
    return -(-batch_size // shards) * shards


class MetricWriter:
    """Appends one JSON object a line to metrics.jsonl; NaN and infinity become null.

    Of several processes only the first one writes.
    """

    def __init__(self, path: Path):
        self.path = path

    def forget_after(self, step: int) -> None:
        """Drops the lines of later steps, which a resumed run is about to write again."""
        if not (leads() and self.path.exists()):
            return
        lines = self.path.read_text().splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) < len(lines):
            write_whole(self.path, "".join(f"{line}\n" for line in kept))

    def has_evaluation_of(self, step: int) -> bool:
        """Whether there is a line of training's own evaluation at this step."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return any(_step_of(line) == step and "during" in json.loads(line) for line in lines)

    def write(self, values: Mapping[str, Any]) -> None:
        if not leads():
            return
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
