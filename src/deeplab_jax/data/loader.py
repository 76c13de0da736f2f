"""Batches made ahead of need, by threads of this process or by worker processes, in one order."""

import gc
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import parent_process, shared_memory, util
from typing import Any

import grain
from absl import flags
from grain.multiprocessing import SharedMemoryArray

from deeplab_jax.errors import ResourceError


class Loader:
    """Endless iterator over a grain dataset of batches.

    The order is the dataset's, whoever makes the batches. So the state is how many were taken, and
    fits any number of threads and workers. Use it in a `with`, or close it: workers end then.

    A script that has workers needs `if __name__ == "__main__":`, as they import it.

    Args:
      dataset: endless, random access.
      num_threads: batches made at a time where there are no workers.
      num_workers: processes that make a batch each; 0: this process's threads do.
    """

    def __init__(self, dataset: grain.MapDataset, num_threads: int, num_workers: int = 0):
        self.dataset, self.num_threads, self.num_workers = dataset, num_threads, num_workers
        self.taken = 0
        self._ahead = None
        # Ctrl-C must not fall into grain's queues, which would wait for ever in `close`: it ends
        # the waiting for this thread, which takes from them.
        self._thread = ThreadPoolExecutor(1, "loader")

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, Any]:
        """The next batch.

        Raises:
          DataError: from the source; asking again tries the same batch again.
          ResourceError: when a worker has died.
        """
        if self._ahead is None:
            self._ahead = self._begin()
        try:
            batch = self._thread.submit(next, self._ahead).result()
        except BaseException as error:
            self.close()
            if isinstance(error, RuntimeError) and str(error).startswith("Worker process"):
                raise ResourceError(
                    f"a worker process of the data has died ({str(error).split('. ')[0]}). Was it "
                    "memory, or shared memory (df -h /dev/shm)? Lower data.num_workers or "
                    "train.batch_size; data.num_workers=0 has none. In a script of your own, "
                    'train under `if __name__ == "__main__":`'
                ) from error
            raise
        self.taken += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The position, JSON."""
        return {"next_index": self.taken}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on where `get_state` was called, in this process or another."""
        self.close()
        self.taken = state["next_index"]

    def close(self) -> None:
        """Ends threads and workers; asking for a batch begins anew."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            self._thread.submit(ahead.close).result()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _begin(self) -> grain.DatasetIterator:
        rest = self.dataset[self.taken :]
        if not self.num_workers:
            ahead = max(2, self.num_threads)
            return iter(rest.to_iter_dataset(grain.ReadOptions(self.num_threads, ahead)))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its own, which a notebook has not parsed
        # Before multiprocessing stops the thread that deletes it, at 15.
        util.Finalize(None, _delete_shared_memory, exitpriority=20)
        one_by_one = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        workers = grain.MultiprocessingOptions(self.num_workers, per_worker_buffer_size=1)
        return iter(
            rest.to_iter_dataset(one_by_one).mp_prefetch(workers, worker_init_fn=_begin_worker)
        )


def _delete_shared_memory() -> None:
    """Waits, though not for ever, for grain's thread that does so."""
    thread = getattr(SharedMemoryArray, "_del_thread_pool", None)  # grain has no call for it
    if thread is not None:
        gc.collect()  # an error's frames may hold a batch
        thread.apply_async(int).wait(10)


def _begin_worker(index: int, count: int) -> None:
    """Ties a worker to its parent: it ends with it, however that ends, and not before."""
    for number in (signal.SIGINT, signal.SIGTERM):  # these may reach all: the parent decides
        signal.signal(number, signal.SIG_IGN)
    creating, create = threading.Lock(), shared_memory.SharedMemory.__init__

    def create_whole(*args, **kwargs):
        with creating:
            create(*args, **kwargs)

    def follow():
        parent_process().join()
        with creating:  # between its creation and its registration nobody would delete it
            os._exit(1)

    shared_memory.SharedMemory.__init__ = create_whole
    threading.Thread(target=follow, daemon=True).start()
