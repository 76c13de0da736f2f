"""The stream of batches: its order and position, whoever makes it, and how that ends."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import write_folder
from test_data import DATA

from deeplab_jax import runtime
from deeplab_jax.data import folder, pipeline
from deeplab_jax.data.labels import labels
from deeplab_jax.errors import DataError, ResourceError
from deeplab_jax.meter import Meter
from deeplab_jax.train import finisher


def stream(root, threads=1, workers=0, process=0, processes=1, **changes):
    source = folder.source(root, "all", labels((), 3))
    data = DATA | {"num_threads": threads, "num_workers": workers} | changes
    several = {"process": process, "processes": processes}
    return pipeline.train_iterator(source, data, seed=3, batch_size=3, **several)


def take(batches, count):
    batches = itertools.islice(batches, count)
    return [{key: np.array(x) for key, x in batch.items()} for batch in batches]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"), count=7)


def test_threads_give_the_stream_of_one(root):
    with stream(root) as one, stream(root, threads=3) as three:
        assert_same(take(one, 6), take(three, 6))


def test_workers_give_the_same_stream_and_a_dead_one_ends_it_in_words(root):
    with stream(root) as alone, stream(root, workers=2) as two:
        assert_same(take(alone, 3), take(two, 3))
        assert two.get_state() == alone.get_state()
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        os.kill(workers[0].pid, signal.SIGKILL)
        with pytest.raises(ResourceError, match=r"exit code -9.*Lower data\.num_workers"):
            take(two, 20)
        assert not multiprocessing.active_children()


def test_one_worker_goes_on_where_threads_stopped_and_tells_of_a_bad_file_as_they_do(tmp_path):
    root = write_folder(tmp_path)
    with stream(root, threads=2) as threads, stream(root, workers=1) as worker:
        take(threads, 2)
        worker.set_state(json.loads(json.dumps(threads.get_state())))
        assert_same(take(threads, 2), take(worker, 2))
        for path in (root / "images").iterdir():
            path.write_bytes(b"\xff\xd8 no picture")
        threads.set_state({"next_index": 30})
        worker.set_state({"next_index": 30})
        said = []
        for batches in (threads, worker):
            with pytest.raises(DataError) as caught:
                next(batches)
            said.append(str(caught.value))
    assert said[0] == said[1]
    assert "not a readable image" in said[0]


def test_processes_have_each_a_block_of_the_batches_of_one_wherever_they_go_on(root):
    with stream(root) as whole:
        expected = take(whole, 4)
    blocks = []
    for process in range(3):
        with stream(root, process=process, processes=3) as share:
            share.set_state({"next_index": 1})
            blocks.append(take(share, 3))
            assert share.get_state() == {"next_index": 4}
    joined = [
        {key: np.concatenate([b[key] for b in step]) for key in step[0]} for step in zip(*blocks)
    ]
    assert_same(joined, expected[1:])


def test_shares_of_a_split_are_apart_and_know_their_places(root):
    whole = folder.source(root, "all", labels((), 3))
    shares = [pipeline.Share(whole, process, 9) for process in range(9)]
    assert [len(share) for share in shares] == [1] * 7 + [0] * 2
    two = [pipeline.Share(whole, process, 2) for process in range(2)]
    seen = {example["index"]: example for share in two for example in share}
    assert sorted(seen) == list(range(7))
    for place, example in seen.items():
        np.testing.assert_array_equal(example["image"], whole[place]["image"])


def test_going_back_gives_the_batches_again(root):
    with stream(root, threads=2) as batches:
        take(batches, 2)
        position = batches.get_state()
        assert_same([next(batches)], [batches.set_state(position) or next(batches)])


def test_the_images_of_a_stream_are_of_one_range_of_sizes_where_asked(root):
    sizes = {"min_resize_value": 9, "max_resize_value": 99, "resize_factor": None}
    still = {"min_scale_factor": 1.0, "max_scale_factor": 1.0, "flip": False}
    with stream(root, **still, **sizes) as batches:
        label = next(batches)["label"]
    # 40x50 became 9x11.
    assert (label[:, 9:] == 255).all()
    assert (label[:, :, 11:] == 255).all()
    assert (label[:, 8, :11] != 255).all()


def test_batches_finished_on_the_device_are_those_of_the_host(root):
    mesh = runtime.data_mesh()
    finish = finisher(DATA | {"augment_on": "device"}, mesh)
    with stream(root) as host, stream(root, augment_on="device") as device:
        for expected, windows in zip(take(host, 2), take(device, 2)):
            # Of 3, which do not split over the two devices.
            expected, windows = ({k: x[:2] for k, x in b.items()} for b in (expected, windows))
            batch = finish(runtime.shard_batch(windows, mesh))
            np.testing.assert_allclose(batch["image"], expected["image"], atol=1e-3 * 255)
            np.testing.assert_array_equal(batch["label"], expected["label"])
            assert batch["image"].sharding == runtime.batch_sharding(mesh)


# --- ends ---

PROGRAM = """
import json, multiprocessing, sys
from multiprocessing import shared_memory
from deeplab_jax import runtime
from deeplab_jax.data import folder, pipeline
from deeplab_jax.data.labels import labels

shared_memory._SHM_NAME_PREFIX = sys.argv[3]  # in the workers, too, which import this first

if __name__ == "__main__":
    source = folder.source(sys.argv[1], "all", labels((), 3))
    with pipeline.train_iterator(source, json.loads(sys.argv[2]), 0, 3) as batches:
        next(batches)
        print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
        while True:
            next(batches)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent_however_it_ends(root, tmp_path, how):
    (tmp_path / "program.py").write_text(PROGRAM)
    prefix = f"/t{os.getpid()}_"  # other tests at work at the same time have shared memory, too
    data = json.dumps(DATA | {"num_workers": 2})
    command = [sys.executable, tmp_path / "program.py", root, data, prefix]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            workers = [int(pid) for pid in process.stdout.readline().split()]
            until(lambda: shared_memory(prefix))
            # The terminal and a scheduler send theirs to the workers, too.
            (os.kill if how == signal.SIGKILL else os.killpg)(process.pid, how)
            process.wait(30)
        finally:
            process.kill()
    assert len(workers) == 2
    assert process.returncode != 0
    until(lambda: not (any(alive(pid) for pid in workers) or shared_memory(prefix)))


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def shared_memory(prefix: str) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if f"/{name}".startswith(prefix)]


# --- how long steps wait for it ---


def test_a_step_waits_for_data_from_the_end_of_the_one_before():
    names = ("loss", "gradient_norm", "learning_rate", "sound")
    figures = {name: jnp.float32(1) for name in names}
    meter = Meter(batch_size=4)
    for pause in (0.0, 0.3):
        meter.batch_is_there()
        meter.step_began(figures)
        time.sleep(pause)
    meter.batch_is_there()
    with meter.paused():
        time.sleep(0.3)  # evaluation is neither waiting nor part of the time
    meter.step_began(figures)
    line = meter.finish()
    elapsed = 12 / line["images_per_second"]
    assert 0.3 <= elapsed < 0.6
    assert 0.3 <= line["data_wait_share"] * elapsed + 0.01
    meter.batch_is_there()
    meter.step_began(figures)
    time.sleep(0.3)
    assert meter.finish()["data_wait_share"] < 0.5
