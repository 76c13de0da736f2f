"""Several processes as one run: how they start, what they tell each other, how they end together.

JAX has the engine: every process runs the same program, and arrays lie on the devices of all
(jax.distributed). Here is what a program has to add.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from deeplab_jax import output, runtime
from deeplab_jax.data.pipeline import Share
from deeplab_jax.data.skipping import check_share
from deeplab_jax.errors import (
    ConfigError,
    NumericsError,
    Preempted,
    ResourceError,
    UserError,
)

OF_ALL = (NumericsError, Preempted)  # errors that all processes raise, at the same step

LOST = (
    "another process of this run has ended or cannot be reached; what it said tells why. The same "
    "command, given to all again, goes on from the last checkpoint"
)
ABORTED = f"JAX, whose words are above, has aborted this process, most likely since {LOST}"
NOT_COME = "the processes of this run have not found each other; JAX's own words are above"
# Of errors that mean this, in the words of the libraries underneath.
_LOST_WORDS = ("gloo", "nccl", "coordination service", "heartbeat", "peer", "unavailable")


def start(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Joins this process to a run of several; before anything else that JAX does.

    Where nothing is given the cluster's environment says it: SLURM, Open MPI, Cloud TPU, GKE.
    All but the first process are silent from here on. If another one is lost, this one ends with
    a sentence and `ResourceError.exit_code`: at once if it waits for that one, else when
    its heartbeats have failed for 100 s.

    Args:
      coordinator: HOST:PORT of the first process, at a port that is free there.
      count: processes of the run.
      index: of this one, from 0.

    If the others do not come within five minutes, it ends in the same way.

    Raises:
      ConfigError: if they do not say enough.
    """
    _speak_when_aborted(NOT_COME)
    try:
        jax.distributed.initialize(coordinator, count, index)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(
            f"--distributed: {str(error).splitlines()[0]}. Outside SLURM, Open MPI and TPU pods "
            "give --coordinator=HOST:PORT --processes=N --process=I, on every machine"
        ) from error
    _speak_when_aborted(ABORTED)
    if not runtime.leads():
        output.silence()
    _connect()


def _connect() -> None:
    """Lets the devices find each other now, when all are here.

    On CPUs they do so at the first sum that they share, and no one waits there for more than 30 s
    (later for any time): a process that compiles or reads its data for longer would be lost.
    """
    mesh = runtime.data_mesh()
    ones = jax.make_array_from_process_local_data(
        runtime.batch_sharding(mesh), np.ones(jax.local_device_count(), np.float32)
    )
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=runtime.replicated(mesh))(ones))
    multihost_utils.process_allgather(np.zeros(1, np.float32))


def _speak_when_aborted(words: str) -> None:
    """A lost process makes JAX abort the others, from a thread of its own: no exception to catch,
    and Python's own signal handlers would come too late."""

    def speak(_):
        os.write(2, f"error: {words}\n".encode())
        os._exit(ResourceError.exit_code)

    global _handler
    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(speak)
    ctypes.CDLL(None).signal(signal.SIGABRT, _handler)


def end_with(error: BaseException, debug: bool) -> None:
    """Ends this process, one of several, as `error` says, without waiting for the others.

    They may be waiting for this one. The first, without which none can live, gives them time to
    end for reasons of their own.
    """
    lost = not isinstance(error, UserError) and any(w in str(error).lower() for w in _LOST_WORDS)
    who = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    elif debug or not (lost or isinstance(error, UserError)):
        traceback.print_exception(error)
        code = getattr(error, "exit_code", 1)
    elif lost:
        output.complain(f"error ({who}): {LOST} ({str(error).splitlines()[0]})")
        code = ResourceError.exit_code
    else:
        output.complain(f"error ({who}): {error}")
        code = error.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    if runtime.leads():
        time.sleep(3)
    os._exit(code)


def place() -> tuple[int, int]:
    """(this process's index, how many there are)."""
    return jax.process_index(), jax.process_count()


def everywhere(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Arrays of this process → the first process's values, whole on every device of the mesh."""
    sharding = runtime.replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    # Not every process's own: what two kinds of machines compute differs in the last bits.
    tree = multihost_utils.broadcast_one_to_all(tree)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def own(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """`tree`, whole on every device of all, as arrays on the `mesh` of this process's alone."""
    sharding = runtime.replicated(mesh)

    def copies(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return jax.device_put(x, sharding)
        shards = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, shards)

    return jax.tree.map(copies, tree)


def own_mesh(mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The part of a mesh that is this process's."""
    own = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    return runtime.data_mesh(runtime.spatial_shards(mesh), own)


def apart(
    mesh: jax.sharding.Mesh, variables: Any, source: Any
) -> tuple[jax.sharding.Mesh, Any, Share]:
    """What a process evaluates with, by itself: its part of the mesh, `variables` on that, its part
    of the source."""
    mesh = own_mesh(mesh)
    return mesh, own(variables, mesh), Share(source, *place())


def joined(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Batches on the `own_mesh` of each process → one batch on the `mesh` of all."""
    if jax.process_count() == 1:
        return tree
    sharding = runtime.batch_sharding(mesh)

    def join(x):
        shape = (x.shape[0] * jax.process_count(), *x.shape[1:])
        shards = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, sharding, shards)

    return jax.tree.map(join, tree)


def same(step: int | None, workdir: Any) -> None:
    """Of the checkpoint in `workdir` to use (None: there is none) all processes see the same step.

    Raises:
      ConfigError: in all of them, if they do not.
    """
    seen = np.concatenate(gathered(np.array([-1 if step is None else step]))).tolist()
    if len(set(seen)) > 1:
        shown = ", ".join("none" if step < 0 else str(step) for step in seen)
        raise ConfigError(
            f"{workdir}: the processes see checkpoints of the steps {shown} there; --workdir has "
            "to be a folder that all machines share"
        )


def first_says(said: bool) -> bool:
    """What the first process says; call it in all."""
    return bool(gathered(np.array([said]))[0][0])


def left_out(seen: int, source: Any) -> int:
    """How many examples of `source` no process has seen; call it in all, with each one's number.

    Raises:
      DataError: in all of them, if these are more than may be passed over.
    """
    missing = len(source) - int(np.sum(gathered(np.array([seen]))))
    check_share(missing, len(source))  # a process has counted those of its share alone
    return missing


def gathered(array: np.ndarray) -> list[np.ndarray]:
    """Every process's `array`, which may differ in length; call it in all of them."""
    if jax.process_count() == 1:
        return [array]
    # As bytes: JAX would make 32 bits of 64.
    mine = np.frombuffer(array.tobytes(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(array)))
    sizes = multihost_utils.process_allgather(np.int32(mine.size))
    padded = np.zeros(max(sizes.max(), 1), np.uint8)
    padded[: mine.size] = mine
    rows = multihost_utils.process_allgather(padded)
    return [
        np.asarray(row[:size]).copy().view(array.dtype).reshape(length, *array.shape[1:])
        for row, size, length in zip(rows, sizes, lengths)
    ]


class Preemption:
    """Tells the loop of training, after a step, that SIGTERM or Ctrl-C came and this step is the
    last.

    Of several processes each learns of SIGTERM at the same step, whichever got it: JAX catches it
    (jax_enable_preemption_service), and Ctrl-C ends them at once. Alone, this catches both. A
    second one ends a process that is alone at once, and so does any after the `with` it is used in.

    Attributes:
      asked: the signal's name; "" while there was none.
    """

    def __init__(self):
        self.asked, self._former = "", {}

    def reached(self, step: int) -> bool:
        """Call it after every step."""
        if jax.process_count() > 1:
            if multihost_utils.reached_preemption_sync_point(step):
                self.asked = "SIGTERM"
        return bool(self.asked)

    def until_asked(self, work: Callable[[], Any]) -> Any:
        """`work()`, which may call `check`; None where a signal came."""
        try:
            return None if self.asked else work()
        except _Asked:
            return None

    def check(self) -> None:
        """Ends the work of `until_asked` if a signal has come.

        Of several processes none ends so: they would wait for each other.
        """
        if self.asked:
            raise _Asked

    def alone(self) -> None:
        """From here on nothing is shared: of several processes SIGTERM ends the one it comes to."""
        if jax.process_count() > 1 and self._former:
            signal.signal(signal.SIGTERM, self._former[signal.SIGTERM])

    def _ask(self, number, _):
        self.asked = signal.Signals(number).name
        for caught, former in self._former.items():
            # A second Ctrl-C must not wait for anything, but a notebook's process lives on.
            at_once = caught == signal.SIGINT and not hasattr(sys, "ps1")
            signal.signal(caught, signal.SIG_DFL if at_once else former)
        with contextlib.suppress(OSError):  # not by Python's files: the signal may interrupt one
            os.write(2, f"{self.asked}: saving after this step; another ends at once\n".encode())

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self  # a thread may not set handlers
        if jax.process_count() > 1:
            self._former = {signal.SIGTERM: signal.SIG_DFL}  # of the command line's own process
        else:
            for number in (signal.SIGTERM, signal.SIGINT):
                # What whoever started this had it ignore (`command &` in a script) stays so.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._ask) or signal.SIG_DFL
        return self

    def __exit__(self, *_):
        for number, handler in self._former.items():
            signal.signal(number, handler)


class _Asked(Exception):
    """Ends what `Preemption.until_asked` does.

    Not raised by the signal itself, in the midst of anything: a process that ends while the device
    is still at work may crash.
    """
