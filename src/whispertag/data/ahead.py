"""Batches made ahead by a thread: where making one is copying, which lets other threads run, a process costs more.

A worker process would copy every batch once more, into shared memory, and be started anew for every epoch.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Any

import torch

POLL = 0.1  # seconds within which the thread sees that nobody waits any more


@dataclass
class Ahead:
    """What Lightning takes for a loader; every time it is gone through, `begin` makes a new stream.

    depth  batches ready at most; 0: none, each is made when it is asked for
    pin    put tensors where a GPU can fetch them itself
    """

    begin: Callable[[], Iterator[dict[str, Any]]]
    depth: int = 2
    pin: bool = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises what the stream raises."""
        if not self.depth:
            yield from map(self._pinned, self.begin())
            return
        ready: Queue[tuple[dict[str, Any] | None, BaseException | None]] = Queue(self.depth)
        left = threading.Event()

        def put(batch: dict[str, Any] | None, error: BaseException | None = None) -> None:
            while not left.is_set():
                with suppress(Full):
                    ready.put((batch, error), timeout=POLL)
                    return

        def make() -> None:
            try:
                for batch in self.begin():
                    put(self._pinned(batch))
                    if left.is_set():
                        return
                put(None)
            except BaseException as error:  # of any kind: whoever waits must learn of it
                put(None, error)

        thread = threading.Thread(target=make, name="batches ahead", daemon=True)
        thread.start()
        try:
            while True:
                try:
                    batch, error = ready.get(timeout=POLL)
                except Empty:  # so that Ctrl-C is heeded
                    continue
                if error:
                    raise error
                if batch is None:
                    return
                yield batch
        finally:
            left.set()
            thread.join()

    def _pinned(self, batch: dict[str, Any]) -> dict[str, Any]:
        if not self.pin:
            return batch
        return {k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
