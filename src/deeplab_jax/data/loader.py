"""Batches made ahead of need, by threads of this process or by worker processes, in one order."""

import gc
import os
import signal
import threading
from multiprocessing import parent_process, util
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
            batch = next(self._ahead)
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
            self._ahead.close()
            self._ahead = None

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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent decides

    def follow():
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
