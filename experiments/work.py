"""Does what a plan needs and what is not there yet, each training and evaluation in a process."""

import contextlib
import fcntl
import json
import os
import platform
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from deeplab_jax import checkpoint
from deeplab_jax import config as configuration
from deeplab_jax.errors import ConfigError, UserError
from deeplab_jax.output import say, write_whole
from deeplab_jax.runtime import finite
from experiments.plan import Job, arms
from experiments.rows import ROOT


class Failed(UserError):
    """A training or evaluation that ended with an error; its last words, and where they are."""

    exit_code = 1


def done(job: Job, out: Path, seed: int) -> bool:
    """Whether the row has been evaluated: its folder gets its name when all is in it."""
    return job.folder(out, seed).is_dir()


def trained(job: Job, out: Path, seed: int) -> bool:
    """Whether the row's arm has been trained to its end."""
    step = checkpoint.latest_step(job.workdir(out, seed))
    return step is not None and step >= job.config["train.steps"]


def check_same(job: Job, out: Path, seed: int) -> None:
    """Raises ConfigError if the arm there was trained with other defaults than there are now."""
    path = job.workdir(out, seed) / "config.json"
    if not path.exists():
        return
    theirs = configuration.flat(json.loads(path.read_text()))
    ours = finite(job.training)
    for key in sorted(ours.keys() & theirs.keys()):
        # Weights of the classes are a name here and numbers there.
        if ours[key] != theirs[key] and key != "loss.class_weights":
            raise ConfigError(
                f"{path.parent} was trained with {key}={theirs[key]}, now the default is "
                f"{ours[key]}; remove it, or use another --out"
            )
    roots = theirs.get("data.root", ""), job.config["data.root"]
    if Path(roots[0]).resolve() != Path(roots[1]).resolve():
        raise ConfigError(
            f"{path.parent} was trained on data.root={roots[0]}, not on {roots[1]}; use another "
            "--out for other data"
        )


class Worker:
    """Trains and evaluates what is missing. A second runner on the same folder waits and shares.

    Attributes:
      out: gets arms/ARM/seedN/, the workdir of a training, with a folder an evaluation in it.
      processes: how many run at a time. With several GPUs each has one of its own.
    """

    def __init__(self, out: Path, processes: int = 1):
        self.out, self.processes = out.absolute(), processes
        self.stop = threading.Event()
        self.devices: queue.Queue[dict[str, str]] = queue.Queue()
        gpus = visible_gpus() if processes > 1 else []
        for i in range(processes):
            self.devices.put({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})

    def work(self, jobs: Sequence[Job], seeds: Sequence[int]) -> list[Failed]:
        """Does it all, every arm of one seed before the next seed; returns what failed.

        Raises:
          ConfigError: from `check_same`.
        """
        for seed in seeds:
            for job in jobs:
                check_same(job, self.out, seed)
        futures: dict[tuple[str, int], Future] = {}
        with ThreadPoolExecutor(self.processes) as pool:
            for seed in seeds:
                for arm, rows in arms(jobs).items():
                    start = rows[0].start and futures.get((rows[0].start.arm, seed))
                    futures[arm, seed] = pool.submit(self._arm, rows, seed, start)
            try:
                return [error for future in futures.values() for error in future.result()]
            except BaseException:  # Ctrl-C reaches the processes, too; none is to follow them
                self.stop.set()
                raise

    def _arm(self, rows: list[Job], seed: int, start: Future | None) -> list[Failed]:
        if start:
            start.result()
            if not trained(rows[0].start, self.out, seed):  # its last checkpoint is no start
                first, label = rows[0].start.row.label, rows[0].row.label
                return [Failed(f"{label}, seed {seed}: it starts from {first}, which has failed")]
        errors = []
        for job in rows:
            if self.stop.is_set() or done(job, self.out, seed):
                continue
            device = self.devices.get()
            try:
                with locked(job.workdir(self.out, seed)) as lock:
                    if not done(job, self.out, seed):
                        self._evaluate(job, seed, device, lock)
            except Failed as error:
                errors.append(error)
                if not trained(job, self.out, seed):
                    break
            finally:
                self.devices.put(device)
        return errors

    def _evaluate(self, job: Job, seed: int, device: dict[str, str], lock: int) -> None:
        """One process: the rest of the training with the evaluation behind it, or that alone."""
        workdir, folder = job.workdir(self.out, seed), job.folder(self.out, seed)
        mode = "eval" if trained(job, self.out, seed) else "train"
        say(f"{mode} {job.arm} seed {seed}: {job.row.label}")
        began = time.monotonic()
        command = [sys.executable, "-m", "deeplab_jax.main", *job.command(mode, self.out, seed)]
        # Arms of one graph differ by their seeds alone: it is compiled once.
        cache = {"JAX_COMPILATION_CACHE_DIR": str(self.out / "compiled")}
        with (
            (workdir / "log.txt").open("a") as log,
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=cache | os.environ | device,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                pass_fds=[lock],  # held for as long as any process is at work there
            ) as process,
        ):
            line = ""
            for line in process.stdout:
                log.write(line)
                log.flush()
                if self.processes == 1:
                    say(f"  {line.rstrip()}")
        if process.returncode:
            raise Failed(f"{job.row.label}, seed {seed}: {line.strip()} ({workdir / 'log.txt'})")
        about = {
            "commit": commit(),
            "hardware": hardware(),
            "command": job.command(mode, self.out, seed),
            "seconds": round(time.monotonic() - began, 1),
        }
        write_whole(workdir / "eval" / "run.json", json.dumps(about, indent=1) + "\n")
        folder.parent.mkdir(exist_ok=True)
        os.rename(workdir / "eval", folder)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Waits until no other runner is at work in the folder; gives the lock's file descriptor."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name, one each."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    cards = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(i) for i, _ in enumerate(cards)]


def commit() -> str:
    """Of the working tree, with a + where files differ from it; "" where git knows of none."""
    if not shutil.which("git"):
        return ""
    asked = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def hardware() -> str:
    """The processor, or the GPUs."""
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        listed = subprocess.run(asked, capture_output=True, text=True)
        if listed.returncode == 0 and (names := ", ".join(listed.stdout.split("\n")[:-1])):
            return names
    return f"{os.cpu_count()} cores, {platform.machine()}"
