"""The loop of training: steps, checkpoints, evaluations; it goes on where a run was stopped."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from deeplab_jax import checkpoint, nonfinite, processes, runtime
from deeplab_jax.errors import DataError, Preempted
from deeplab_jax.meter import Meter
from deeplab_jax.train import begin, finisher


def train(
    module: nn.Module,
    variables: Any,
    batches,
    config: Mapping[str, Any],
    workdir: Path,
    *,
    first: int | None,
    mesh: jax.sharding.Mesh,
    preemption: processes.Preemption,
    evaluate: Callable[[Any, int], tuple[dict[str, Any], str]],
    begun: Callable[[], None] = lambda: None,
    position_check: Mapping[str, Any],
    profile: Path | None = None,
) -> tuple[Any, int]:
    """Trains to `config.train.steps`, from `first` on.

    Args:
      module: the network to train.
      variables: where to start; unused when resuming, and not to be used afterwards: the first
        step may take over their memory.
      batches: iterator with `get_state`, `set_state` (see `data.pipeline.train_iterator`).
      config: the whole configuration.
      workdir: gets checkpoints/, best.json and metrics.jsonl.
      first: the checkpoint to resume from, that of `checkpoint.recover`; 0 or None: there is none.
      mesh: the devices.
      preemption: tells of signals.
      evaluate: called with (variables, step) every `train.eval_every` steps, not at the end. Gives
        (its line for metrics.jsonl, the key in it by which the best checkpoint is kept: the more
        the better).
      begun: called before the first step, once it is sure that a checkpoint in the workdir fits.
      position_check: facts on the data stream that a resumed run must share.
      profile: folder for a trace of a few steps.

    Returns:
      (the trained {"params", "batch_stats"}, averaged if `train.ema_decay` says so, and their
      step: past `train.steps` where the workdir already was).

    Raises:
      NumericsError: when loss, gradient or batch norm are no longer finite, two steps later at
        most; the last checkpoint before is kept. With `train.on_nan` = "skip" such steps change
        nothing, up to `train.max_skipped` of them.
      Preempted: after SIGTERM or Ctrl-C, with a checkpoint of the step that it came in (of several
        processes: of one soon after); of an evaluation that it came in, before that one.
      WeightsError: when the checkpoint does not fit.
      ResourceError: when a checkpoint cannot be written, one step later at most.
      DataError: from the source.
    """
    train, steps, first = config["train"], config["train"]["steps"], first or 0
    train_step, state = begin(module, variables, config, mesh)
    own_mesh = processes.own_mesh(mesh)
    finish = finisher(config["data"], own_mesh)
    writer = runtime.MetricWriter(workdir / "metrics.jsonl")
    best = checkpoint.read_best(workdir)

    def best_step():
        return best and best.step

    with checkpoint.Checkpoints(workdir, train["keep_checkpoints"], best_step) as kept:
        position = {}
        if first:
            state, position = kept.restore(first, state)
            _check_position(position, position_check, workdir, config["data"]["allow_change"])
            batches.set_state(position["iterator"])
            runtime.say(f"resuming from step {first} in {workdir}")
        begun()
        writer.forget_after(first)
        watch = nonfinite.Watch(train, workdir, lambda: kept.newest, position.get("skipped", 0))
        meter = Meter(train["batch_size"])

        def save(step):
            watch.settle()
            kept.save(step, state, position | {"skipped": watch.skipped} | position_check)

        def evaluated(step):
            """Evaluates, and keeps the checkpoint if it is the best; of a killed run again."""
            nonlocal best
            with meter.paused():
                found = preemption.until_asked(lambda: evaluate(state.variables, step))
            if found is None:
                return
            line, figure = found
            this = checkpoint.Best(step, line[figure], figure)
            if processes.first_says(this.beats(best)):
                save(step)
                kept.finish()
                best = this
                checkpoint.note_best(workdir, best)
            # Last: a resumed run evaluates what has no line, of training's own.
            writer.write({"step": step} | line | {"during": "training"})

        def stop_if_asked(step):
            if preemption.asked:
                if step > first:
                    save(step)
                    kept.finish()
                raise Preempted(
                    f"{preemption.asked}: step {step} of {steps} is saved in {workdir}; the same "
                    "command goes on from there, with any number of devices"
                )

        if first >= steps:
            runtime.say(f"step {first} of {steps}: nothing left to train")
            return state.variables, first
        if first and _due(first, train["eval_every"]):
            if not processes.first_says(writer.has_evaluation_of(first)):
                evaluated(first)
        if first:
            stop_if_asked(first)

        figures = None
        with (
            runtime.Progress(steps, "train", initial=first, every_seconds=float("inf")) as progress,
            runtime.StepProfile(profile, first + 1) as profiled,
        ):
            meter.restart()
            for step in range(first + 1, steps + 1):
                profiled.before(step, figures)
                # The device is still at work on the step before: this batch is read and sent
                # beside it.
                batch = next(batches)
                meter.batch_is_there()
                position = {"iterator": batches.get_state()}
                if step == first + 1:
                    runtime.say("compiling the train step")
                sent = processes.joined(finish(runtime.shard_batch(batch, own_mesh)), mesh)
                state, figures = train_step(state, sent)
                if step == first + 1:
                    jax.block_until_ready(figures)
                    runtime.say(f"first step after {time.monotonic() - meter.started:.0f} s")
                    meter.restart()
                    meter.batch_is_there()
                meter.step_began(figures)
                watch.saw(step, batch, figures)
                kept.check()
                progress.advance()

                last, preempted = step == steps, preemption.reached(step)
                if _due(step, config["log_every"]) or last or preempted:
                    watch.settle()
                    line = {"step": step} | meter.finish()
                    left = (steps - step) * train["batch_size"] / line["images_per_second"]
                    writer.write(line)
                    progress.note(loss=f"{line['loss']:.3f}")
                    runtime.say(
                        f"step {step}/{steps}  loss {line['loss']:.4f}  "
                        f"lr {line['learning_rate']:.2e}  {line['images_per_second']:.1f} img/s  "
                        f"left {runtime.duration(left)}  "
                        f"data wait {100 * line['data_wait_share']:.0f} %"
                    )
                if _due(step, train["checkpoint_every"]) or last:
                    save(step)
                if _due(step, train["eval_every"]) and not (last or preempted):
                    evaluated(step)
                stop_if_asked(step)
    return state.variables, steps


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0  # 0: never


def _check_position(
    position: Mapping[str, Any], expected: Mapping[str, Any], workdir, allowed: bool
) -> None:
    for key, value in expected.items():
        if position.get(key, value) == value:  # an older version may not have kept it
            continue
        told = (
            f"{workdir}: its checkpoint was trained with {key} {position[key]}, now it is {value}"
        )
        if not allowed:
            raise DataError(
                f"{told}: the order of the data would differ. Use another --workdir, or go on "
                "regardless with --config.data.allow_change=True"
            )
        runtime.say(f"warning: {told}; going on as data.allow_change says")
