"""Checkpoints of the train state and the data position, by Orbax; nothing half-written counts.

A step's files go into a folder of another name, their digests last, and only then does it get its
own: a kill leaves a whole step or none. What the disk changes afterwards the digests tell.
"""

import contextlib
import dataclasses
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from deeplab_jax import digests, runtime
from deeplab_jax.errors import ConfigError, ResourceError, WeightsError

FOLDER = "checkpoints"
DAMAGED = "damaged"
BEST = "best.json"
_HALF_WRITTEN = re.compile(r"\d+\.orbax-checkpoint-tmp.*")


class Checkpoints:
    """The checkpoints in workdir/checkpoints of the run that trains there; use it in a `with`.

    Only one process, or one run of several, may have it open: see `lock.held`. It removes what a
    kill left half-written.

    Args:
      workdir: gets the folder.
      keep: so many newest steps stay, and `kept()` beside them.
      kept: the step that is never removed; None: there is none.
    """

    def __init__(self, workdir: Path, keep: int, kept: Callable[[], int | None] = lambda: None):
        self.folder = (workdir / FOLDER).absolute()
        # Not by Orbax's cleanup_tmp_directories: its thread outlives a run that fails at once, and
        # then ends in a traceback of its own.
        self._remove_half_written()
        policies = ocp.checkpoint_managers
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(keep), _Kept(kept)]
                ),
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                digests.POSITION: ocp.JsonCheckpointHandler(),
            },
        )
        self._step, self._saving = None, False

    @property
    def newest(self) -> int | None:
        """The newest step that is whole."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, position: dict) -> None:
        """Begins saving `state` (a pytree) and `position` (JSON: where the data stream is).

        A step that is there stays as it is.

        Raises:
          ResourceError: if this or the save before it fails.
        """
        if step == self.newest:
            return
        self.finish()
        position = position | {"format": digests.FORMAT}
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(_parts(state)), position=ocp.args.JsonSave(position)
        )
        with self._writing():
            self._step, self._saving = step, True
            begun = self._manager.save(step, args=arguments)
        if not begun:
            raise WeightsError(f"{self._path(step)}: not saved, as {self.newest} is there")

    def check(self) -> None:
        """Raises ResourceError if a save that has begun has failed by now; costs nothing."""
        # Not Orbax's check_for_errors: its thread takes the errors, and keeps them for who waits.
        if self._saving and not self._manager.is_saving_in_progress():
            self.finish()

    def finish(self) -> None:
        """Waits until what was begun is on the disk; raises ResourceError if it is not."""
        self._saving = False
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds
            with contextlib.suppress(Exception):  # others of its threads, of the same save
                self._manager.wait_until_finished()
            self._remove_half_written()
            before = max(_steps(self.folder.parent), default=None)
            intact = f"step {before} is intact. " if before is not None else ""
            raise ResourceError(
                f"{self._path(self._step)}: the checkpoint could not be written "
                f"({_of_disk(error)}). {intact}Free space on that disk, or check its "
                "permissions; then the same command goes on"
            ) from error

    def _seal(self) -> None:
        """Orbax calls it, in a thread, when all files of a step are written."""
        folders = [
            p for p in self.folder.glob(f"{self._step}.*") if _HALF_WRITTEN.fullmatch(p.name)
        ]
        newest = max(folders, key=lambda p: p.stat().st_mtime, default=self._path(self._step))
        digests.write(newest)

    def restore(self, step: int, like: Any) -> tuple[Any, dict]:
        """Returns (state shaped and placed like the dataclass `like`, position) of a saved step.

        Raises:
          WeightsError: if the checkpoint is damaged or belongs to another model.
        """
        path = self._path(step)
        try:
            saved = self._manager.item_metadata(step).state.tree
        except Exception as error:
            raise WeightsError(f"{path}: cannot be read ({_first_line(error)})") from error
        expected = {"params": like.params, "batch_stats": like.batch_stats}
        _check_fits({key: saved[key] for key in expected}, expected, str(path))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _parts(like))
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # Orbax raises many kinds, some of them bare Exception
            raise WeightsError(
                f"{path}: cannot be restored: trained with another optim.name, "
                f"train.freeze_backbone or train.ema_decay ({_first_line(error)}). Use the "
                "configuration it was trained with, or another --workdir"
            ) from error
        return dataclasses.replace(like, **found.state), found.position

    def _path(self, step: int | None) -> Path:
        return self.folder / str(step)

    def _remove_half_written(self) -> None:
        if self.folder.is_dir() and runtime.leads():
            for path in self.folder.iterdir():
                if _HALF_WRITTEN.fullmatch(path.name):
                    _remove(path)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self.finish()
        finally:
            # It, too, waits: leaving without it would lose a save. What it says of one that has
            # failed, `finish` has said; or an error that came before is on its way.
            with contextlib.suppress(Exception):
                self._manager.close()
            self._remove_half_written()


def _remove(folder: Path) -> None:
    """Removes a folder that TensorStore's last threads may still be writing to."""
    for _ in range(50):
        try:
            shutil.rmtree(folder)
            return
        except OSError:
            time.sleep(0.1)


@dataclasses.dataclass
class _Kept(ocp.checkpoint_managers.PreservationPolicy):
    """Of Orbax's policies one that keeps the step `kept()`."""

    kept: Callable[[], int | None]

    def should_preserve(self, checkpoints, *, context):
        kept = self.kept()
        return [checkpoint.step == kept for checkpoint in checkpoints]


class Best(NamedTuple):
    """The best evaluation so far, in workdir/best.json: its step has a checkpoint."""

    step: int
    value: float
    figure: str  # what the value is

    def beats(self, other: "Best | None") -> bool:
        """Whether this is the better one, or `other` is none, or of another figure."""
        comparable = other is not None and other.figure == self.figure
        return math.isfinite(self.value) and not (comparable and other.value >= self.value)


def read_best(workdir: Path) -> Best | None:
    """None where nothing was evaluated yet, or nothing legible is left of it."""
    try:
        return Best(**json.loads((workdir / BEST).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def note_best(workdir: Path, best: Best) -> None:
    """Writes it; not where its step has no checkpoint."""
    if runtime.leads() and best.step in _steps(workdir):
        runtime.write_whole(workdir / BEST, json.dumps(best._asdict()) + "\n")


def latest_step(workdir: Path) -> int | None:
    """The newest complete step in workdir/checkpoints, or None; its files are not looked at."""
    return max(_steps(workdir), default=None)


def _steps(workdir: Path) -> list[int]:
    if not (workdir / FOLDER).is_dir():
        return []
    names = [path.name for path in (workdir / FOLDER).iterdir() if path.is_dir()]
    return [int(name) for name in names if name.isdecimal() and str(int(name)) == name]


def sound_step(workdir: Path, wanted: int | str = "newest") -> int | None:
    """The step to use: its files are, bit for bit, those that were written; None: there are none.

    Args:
      workdir: where training was.
      wanted: "newest", which goes back to an older step where the newest is damaged, and says so;
        "best", or a number.

    Raises:
      WeightsError: if none is sound, the one that is wanted is not, or is not there.
      ConfigError: for another word.
    """
    if wanted != "newest":
        return _wanted_step(workdir, wanted)
    problems = []
    for step in sorted(_steps(workdir), reverse=True):
        folder = workdir / FOLDER / str(step)
        found = digests.problem(folder)
        if not found:
            for told in problems:
                runtime.say(f"warning: {told}; using step {step}")
            if digests.without_digests(folder):
                runtime.say(f"{folder}: of an older version, without digests: not checked")
            return step
        if folder.is_dir():  # a run that trains there may just have removed it
            problems.append(f"{folder}: damaged, {found}")
    if problems:
        raise WeightsError(
            f"{problems[0]}; no other step is sound ({len(problems)} looked at). Nothing was "
            "changed: put back a copy, or use another --workdir"
        )
    return None


def _wanted_step(workdir: Path, wanted: int | str) -> int:
    step = wanted
    if wanted == "best":
        best = read_best(workdir)
        if best is None:
            raise WeightsError(f"{workdir}: no {BEST}: no training there has evaluated anything")
        step = best.step
    if not isinstance(step, int):
        raise ConfigError(f"checkpoint={wanted!r}: takes newest, best or the number of a step")
    folder, there = workdir / FOLDER / str(step), sorted(_steps(workdir))
    if step not in there:
        known = ", ".join(map(str, there)) or "none"
        raise WeightsError(f"{folder}: no such checkpoint; there are {known}")
    if found := digests.problem(folder):
        raise WeightsError(f"{folder}: damaged, {found}; the others are {there}")
    return step


def recover(workdir: Path) -> int | None:
    """`sound_step` of a workdir to train in; moves newer steps, which are damaged, aside.

    A best evaluation whose checkpoint is gone is forgotten.

    Raises:
      WeightsError: if there are steps and none is sound; then nothing is moved.
    """
    step = sound_step(workdir)
    if not runtime.leads():
        return step
    best = read_best(workdir)
    if best is not None and (step is None or best.step > step or best.step not in _steps(workdir)):
        (workdir / BEST).unlink()
    if step is None:
        return None
    for newer in (s for s in _steps(workdir) if s > step):
        target = workdir / DAMAGED / str(newer)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        (workdir / FOLDER / str(newer)).rename(target)
        runtime.say(f"the damaged step {newer} is now in {target}")
    return step


def load_variables(workdir: Path, like: Any, wanted: int | str = "newest") -> tuple[Any, int]:
    """({"params", "batch_stats"}, step) of a checkpoint in a workdir of ours.

    Where training kept their moving average that is what is loaded.

    Args:
      workdir: where training was.
      like: variables of the wanted structure (arrays or ShapeDtypeStructs).
      wanted: as of `sound_step`.

    Raises:
      WeightsError: if there is none or it does not fit.
    """
    found, step = read_variables(workdir, wanted)
    _check_fits(found, like, str(workdir / FOLDER / str(step)))
    arrays = jax.tree.map(lambda leaf, array: array.astype(leaf.dtype), like, found)
    return jax.device_put(arrays), step


def read_variables(workdir: Path, wanted: int | str = "newest") -> tuple[Any, int]:
    """As `load_variables`, NumPy arrays, whatever the model.

    Raises:
      WeightsError: if there is none or it is damaged.
    """
    while True:
        newest = latest_step(workdir)
        try:
            return _read(workdir, wanted)
        except WeightsError:
            # A run that trains there may have removed the step at hand, having saved a newer one.
            if latest_step(workdir) == newest:
                raise


def _read(workdir: Path, wanted: int | str) -> tuple[Any, int]:
    step = sound_step(workdir, wanted)
    if step is None:
        raise WeightsError(f"{workdir}: no checkpoint in {workdir / FOLDER}; train there first")
    path = (workdir / FOLDER / str(step) / "state").absolute()

    def like(saved):  # takes no memory; without it Orbax asks for the devices of the training
        return np.broadcast_to(np.zeros((), saved.dtype), saved.shape)

    with ocp.StandardCheckpointer() as checkpointer:
        try:
            # The optimizer's state comes along and is dropped, whatever it was.
            saved = ocp.StandardCheckpointHandler().metadata(path).tree
            found = checkpointer.restore(path, jax.tree.map(like, saved))
        except Exception as error:
            raise WeightsError(f"{path}: cannot be read ({_first_line(error)})") from error
    found = found.get("average") or found
    # A network without batch norm may have been saved without "batch_stats".
    return {key: found.get(key, {}) for key in ("params", "batch_stats")}, step


def _parts(state: Any) -> dict[str, Any]:
    """A dataclass or mapping as a dict without what is None: older checkpoints lack it too."""
    parts = state if isinstance(state, Mapping) else vars(state)
    return {name: part for name, part in parts.items() if part is not None}


def _check_fits(theirs: Any, ours: Any, path: str) -> None:
    """Raises WeightsError if saved variables have other names or shapes than ours."""
    theirs, ours = _shapes(theirs), _shapes(ours)
    differing = sorted(name for name in theirs | ours if theirs.get(name) != ours.get(name))
    if differing:
        raise WeightsError(
            f"{path}: belongs to another model; the first of {len(differing)} differences: "
            + ", ".join(f"{n}: {theirs.get(n)} there, {ours.get(n)} here" for n in differing[:3])
            + ". Use the configuration it was trained with, or another --workdir"
        )


def _shapes(tree) -> dict[str, tuple]:
    return {
        jax.tree_util.keystr(path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _of_disk(error: Exception) -> str:
    """What the system said, at the end of TensorStore's long line, if it was that."""
    said = re.search(r"([^:]+?) *\[os_error_code", str(error))
    return said[1].strip() if said else _first_line(error)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
