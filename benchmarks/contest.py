"""Times contenders in turn: one process each, all alive at once, only one at work at a time.

A machine's speed drifts by more than the differences worth knowing, so nothing is compared with a
figure from another run: every round gives each contender a few calls, and ratios are of medians
over the rounds of one run. Processes of their own keep thread pools, allocators and GPU memory
apart, and make peak memory each contender's own.
"""

import contextlib
import datetime
import json
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_jax import huge_pages

HERE = Path(__file__).parent


class Contender(NamedTuple):
    """`make(**options)` runs in the contender's process: (call, facts), call blocks until done."""

    name: str
    make: Callable[..., tuple[Callable[[], Any], dict]]
    options: dict


def contest(
    contenders: Sequence[Contender], *, rounds: int = 7, seconds: float = 1.0, at_least: int = 1
) -> dict[str, dict]:
    """Times each contender's call in every round.

    Args:
      contenders: names must differ.
      rounds: how often each one's turn comes.
      seconds: a turn repeats the call about this long.
      at_least: calls a turn.

    Returns:
      {name: {"median_ms", "min_ms", "calls", "setup_s", "first_call_s", "peak_memory_mb", ...}},
      or {name: {"error"}} for one that could not run; the others go on.
    """
    context = multiprocessing.get_context("spawn")
    results, running = {}, {}
    # As our command line sets itself up; torch may have the same.
    os.environ.update(huge_pages.environment(os.environ))
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # contenders share the card's memory
    for contender in contenders:
        ours, theirs = context.Pipe()
        # Not daemons, which may have no children: loaders of data do. They end with their pipe.
        process = context.Process(target=_work, args=(theirs, contender))
        process.start()
        theirs.close()
        print(f"  {contender.name}: ", end="", flush=True)
        answer = _answer(ours)
        print(answer.get("error") or f"first call after {answer['first_call_s']:.1f} s", flush=True)
        results[contender.name] = answer
        if "error" in answer:
            process.join()
        else:
            running[contender.name] = (process, ours)
    times = {name: [] for name in running}
    for _ in range(rounds):
        for name, (_, pipe) in list(running.items()):
            pipe.send((seconds, at_least))
            answer = _answer(pipe)
            if "error" in answer:
                results[name] = answer
                del running[name]
            else:
                times[name] += answer["times"]
    for name, (process, pipe) in running.items():
        pipe.send(None)
        results[name] |= _answer(pipe) | {
            "median_ms": 1e3 * statistics.median(times[name]),
            "min_ms": 1e3 * min(times[name]),
            "calls": len(times[name]),
        }
        process.join()
    return results


def _answer(pipe) -> dict:
    try:
        return pipe.recv()
    except EOFError:
        return {"error": "the process died"}


def _work(pipe, contender: Contender) -> None:
    """The contender's process: set up, then one turn a message, until None."""
    try:
        start = time.perf_counter()
        call, facts = contender.make(**contender.options)
        setup = time.perf_counter() - start
        start = time.perf_counter()
        call()
        first = time.perf_counter() - start
        call()
    except Exception as error:  # a contender may lack a library or memory: the table says so
        pipe.send({"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"})
        return
    pipe.send({"setup_s": setup, "first_call_s": first} | facts)
    while (turn := _turn(pipe)) is not None:
        seconds, at_least = turn
        call()  # wakes threads, fills caches
        times = []
        while len(times) < at_least or sum(times) < seconds:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        pipe.send({"times": times})
    pipe.send({"peak_memory_mb": _peak_memory()})


def _turn(pipe):
    """What to do next; None, to end, also when the contest is gone."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def _peak_memory() -> float:
    """MB at most: on the GPU where one was used, else resident (libraries and all)."""
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    if (jax := sys.modules.get("jax")) is not None:
        if statistics_ := jax.devices()[0].memory_stats():
            return statistics_["peak_bytes_in_use"] / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


# --- writing ---------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return apart(_machine)


def apart(function: Callable, *args):
    """function(*args) in a process of its own, which takes no GPU memory from the contenders."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def _machine() -> dict[str, Any]:
    import jax

    facts = {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "load_average": round(os.getloadavg()[0], 2),
    }
    if facts["device"] == "cpu":
        facts["device"] = next(
            (
                line.split(":", 1)[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            platform.processor(),
        )
    with contextlib.suppress(ImportError):
        import torch

        facts["torch"] = torch.__version__
    return facts


def write(name: str, title: str, columns: Sequence[str], rows: Sequence[Sequence], raw: Any):
    """Writes results/NAME.json and .md, and prints the table."""
    facts = machine()
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    (folder / f"{name}.json").write_text(
        json.dumps({"command": command, "machine": facts, "results": raw}, indent=1) + "\n"
    )
    lines = [f"# {title}", "", f"`{command}`", ""]
    lines += [", ".join(f"{key} {value}" for key, value in facts.items()), ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    text = "\n".join(lines) + "\n"
    (folder / f"{name}.md").write_text(text)
    print("\n" + text)


def _cell(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return str(value)
