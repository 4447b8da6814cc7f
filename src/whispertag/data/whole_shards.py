"""Shards one after another, whole and in order, as extract.py hears them: its stages instead of a training's."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from whispertag.data.shards import Shard
from whispertag.data.stages import Sample

Stage = Callable[[Iterable[Sample]], Iterator[Sample]]


def shard_by_shard(
    shards: list[Shard], open_shard: Callable[[Shard], Iterator[Sample]], batch_size: int, read: Stage, decode: Stage
) -> Iterator[dict[str, Any]]:
    """Batches {shard: its number, last: whether it ends here, key, wave_BS, labels_BC}, each of one shard.

    Every worker goes through all shards and decodes every n-th batch, so that DataLoader hands them out in order and
    only one shard is in hand at a time. A batch may be empty: clips that cannot be used are left out of theirs.
    """
    worker = torch.utils.data.get_worker_info()
    index, count = (worker.id, worker.num_workers) if worker else (0, 1)
    number = 0
    for i, shard in enumerate(shards):
        samples = open_shard(shard)
        ahead = list(islice(samples, batch_size))
        while True:
            chunk, ahead = ahead, list(islice(samples, batch_size))
            if number % count == index:
                yield {"shard": i, "last": not ahead} | _collate(list(decode(read(chunk))))
            number += 1
            if not ahead:
                break


def _collate(samples: list[Sample]) -> dict[str, Any]:
    if not samples:
        return {"key": [], "wave_BS": torch.zeros(0, 0), "labels_BC": torch.zeros(0, 0)}
    return {
        "key": [sample["__key__"] for sample in samples],
        "wave_BS": torch.from_numpy(np.stack([sample["wave_S"] for sample in samples])),
        "labels_BC": torch.from_numpy(np.stack([sample["labels_C"] for sample in samples])),
    }
