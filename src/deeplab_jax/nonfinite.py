"""Steps whose numbers are no longer finite: noticed, kept for a look, or skipped."""

import io
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deeplab_jax import processes, runtime
from deeplab_jax.errors import NumericsError

FOLDER = "nonfinite"
# Steps that the host may be ahead of the device: it would pile up batches. By then a step's
# figures are there, and looking at them holds nothing up.
AHEAD = 2


def sound(loss: jax.Array, *trees: Any) -> jax.Array:
    """Inside jit: whether `loss` and all numbers of the trees are finite, a bool."""
    return jnp.isfinite(loss) & jnp.all(
        jnp.array([jnp.isfinite(optax.tree.norm(t)) for t in trees])
    )


def kept_where(fine: jax.Array, new: Any, old: Any) -> Any:
    """Inside jit: the tree `new` where `fine`, a bool, else `old`."""
    return jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)


class Watch:
    """Looks at every step's figures, two steps later.

    Args:
      train: config.train; `on_nan` and `max_skipped` are read.
      workdir: gets nonfinite/step_N.npz, the batch of a step that ended the run.
      newest: gives the newest checkpoint's step, or None.
      skipped: steps skipped so far.
    """

    def __init__(
        self,
        train: Mapping[str, Any],
        workdir: Path,
        newest: Callable[[], int | None],
        skipped: int = 0,
    ):
        self.train, self.workdir, self.newest, self.skipped = train, workdir, newest, skipped
        self._pending = deque()

    def saw(self, step: int, batch: Mapping[str, np.ndarray], figures: Any) -> None:
        """Call it after each step, with its batch on the host.

        Raises:
          NumericsError: for a step before, as `settle`.
        """
        self._pending.append((step, batch, figures))
        self._look(AHEAD)

    def settle(self) -> None:
        """Waits for the device, and looks at all steps seen so far.

        Raises:
          NumericsError: if the numbers of one were not finite and `train.on_nan` is "stop", or too
            many were skipped.
        """
        self._look(0)

    def _look(self, ahead: int) -> None:
        while len(self._pending) > ahead:
            step, batch, figures = self._pending.popleft()
            if figures["sound"]:
                continue
            told = f"step {step}: loss {figures['loss']}, gradient norm {figures['gradient_norm']}"
            self.skipped += 1
            most = self.train["max_skipped"]
            if self.train["on_nan"] == "skip" and self.skipped <= most:
                runtime.say(f"warning: {told}; skipped ({self.skipped} of at most {most})")
                continue
            raise NumericsError(self._told(told, step, batch))

    def _told(self, told: str, step: int, batch: Mapping[str, np.ndarray]) -> str:
        if self.train["on_nan"] == "skip":
            told += f", after {self.skipped - 1} skipped steps"
        advice = "Try a lower optim.learning_rate, a larger batch, train.fine_tune_batch_norm=False"
        if self.train["on_nan"] == "stop":
            advice += ", or train.on_nan=skip"
        kept = self.newest()
        kept = f"The checkpoint of step {kept} is kept. " if kept is not None else ""
        return f"{told}. {self._dump(step, batch)}. {kept}{advice}"

    def _dump(self, step: int, batch: Mapping[str, np.ndarray]) -> str:
        index, count = processes.place()
        which = f"_process_{index}" if count > 1 else ""
        path = self.workdir / FOLDER / f"step_{step}{which}.npz"
        content = io.BytesIO()
        np.savez_compressed(content, **batch)
        try:
            runtime.write_whole(path, content.getvalue())
        except OSError as error:  # which is not what ended the run
            return f"Its batch could not be kept ({error.strerror})"
        return f"Its batch is in {path}"
