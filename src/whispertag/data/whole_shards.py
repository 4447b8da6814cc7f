"""Whole shards, each in its order, as extract.py hears them: its stages instead of a training's."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from whispertag.data.shards import Shard
from whispertag.data.stages import Sample, collate

Stage = Callable[[Iterable[Sample]], Iterator[Sample]]


def shard_by_shard(
    shards: list[Shard], open_shard: Callable[[Shard], Iterator[Sample]], batch_size: int, read: Stage, decode: Stage
) -> Iterator[dict[str, Any]]:
    """Batches {shard: its number, last: whether it ends here, key: as in the shard, wave_BS, labels_BC}, each of one.

    A worker has shards of its own, so that what breaks off for one shifts nothing for the others; DataLoader hands out
    their batches in turn, and as many shards as workers are in hand at a time. A batch may have no keys, and no waves
    then: clips that cannot be used are left out of theirs.
    """
    worker = torch.utils.data.get_worker_info()
    index, count = (worker.id, worker.num_workers) if worker else (0, 1)
    for i in range(index, len(shards), count):
        samples = open_shard(shards[i])
        ahead = list(islice(samples, batch_size))
        while True:
            chunk, ahead = ahead, list(islice(samples, batch_size))
            heard = list(decode(read(chunk)))
            batch = collate(heard) | {"key": [sample["__key__"] for sample in heard]} if heard else {"key": []}
            yield batch | {"shard": i, "last": not ahead}
            if not ahead:
                break
