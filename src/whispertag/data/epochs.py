"""How much of a data set an epoch is, and how its readers share it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from whispertag.data.shards import Shard, ShardError


@dataclass(frozen=True)
class Epochs:
    """Arithmetic of a stream.

    batch_size       clips
    readers          of each rank: worker processes, or one thread
    epochs_per_pass  an epoch is one of so many parts of the shards; the parts change with every pass
    reads            clips read for one that is used
    whole_shards     readers take whole shards where there are enough of them; else every n-th clip
    """

    batch_size: int
    readers: int = 1
    epochs_per_pass: int = 1
    reads: float = 1.0
    whole_shards: bool = True

    def clips(self, per_pass: int) -> float:
        """Of an epoch, over all ranks; on average where they are drawn."""
        return per_pass / self.epochs_per_pass / self.reads

    def shards(self, shards: list[Shard], seed: int, epoch: int) -> list[Shard]:
        """The part of the shards that this epoch reads. Raises ShardError if there are fewer shards than parts."""
        if self.epochs_per_pass > len(shards):
            raise ShardError(f"data.epochs_per_pass={self.epochs_per_pass}: there are {len(shards)} shards")
        if self.epochs_per_pass == 1:
            return shards
        nth_pass, part = divmod(epoch, self.epochs_per_pass)
        order = np.random.default_rng([seed, nth_pass]).permutation(len(shards))
        return [shards[i] for i in order[part :: self.epochs_per_pass]]

    def batches(self, per_pass: int, sizes: Sequence[int | None], world_size: int = 1) -> int:
        """Of one epoch on each of `world_size` ranks; on one it is as good as the manifests know the shards' `sizes`.

        Every reader ends on a smaller batch of its own.
        """
        if world_size > 1:
            return self.readers * self.batches_each(per_pass, world_size)
        total = self.clips(per_pass)
        if self.whole_shards and total == per_pass and None not in sizes and len(sizes) >= self.readers:
            shares = [sum(size or 0 for size in sizes[i :: self.readers]) for i in range(self.readers)]
        else:
            shares = [len(range(i, round(total), self.readers)) for i in range(self.readers)]
        return sum(ceil(share / self.batch_size) for share in shares)

    def batches_each(self, per_pass: int, world_size: int) -> int:
        """That every reader of several ranks gives: ranks take their steps together."""
        readers, total = world_size * self.readers, self.clips(per_pass)
        if total < readers:
            raise ShardError(f"{total:.0f} training clips an epoch for {readers} workers × ranks: take fewer of both")
        return ceil(total / readers / self.batch_size)
