"""ClipData: shards of sounds, streamed with webdataset in visible stages."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from math import ceil
from os import PathLike
from pathlib import Path

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader
from webdataset import DataPipeline, tarfile_to_samples

from whispertag.audio import SAMPLE_RATE
from whispertag.data.ledger import BadClips
from whispertag.data.shards import Manifest, Shard, ShardError, find_shards
from whispertag.data.stages import (
    Share,
    batched,
    decode,
    list_shards,
    miss_lost,
    note_broken_tar,
    parse,
    shuffled,
    take_share,
)
from whispertag.labels import ClassTable

log = logging.getLogger(__name__)
TASKS = ("multilabel", "multiclass")


class ClipData(LightningDataModule):
    """Training and validation clips out of shards.

    train, val    folders of shards, tars or brace ranges of tars; `val` is scored exactly once an
                  epoch, every clip, whatever the number of workers and ranks; `test` is `val`
    classes       the class table; a csv's path is read, "audioset" is the 527 classes
    task          "multilabel" (any number of sounds a clip) or "multiclass" (exactly one)
    clip_seconds  longer clips are cut, shorter ones padded with silence
    label_key     where the json of a sample keeps its labels
    shuffle       clips held in each worker's shuffle buffer (encoded, not yet decoded)
    max_bad       this many clips may be skipped in a run; one more stops it
    seed          with the epoch, rank and worker it fixes the train stream
    n_train       training clips, where no manifest tells
    prepare       makes the shards where they are missing; called once, before anything is read

    A batch is {key: list of shard:key, wave_BS: float32 at 16 kHz, labels_BC: float32}.
    """

    def __init__(
        self,
        train: Sequence[str | PathLike[str]],
        val: Sequence[str | PathLike[str]],
        classes: ClassTable | str | PathLike[str],
        task: str = "multilabel",
        clip_seconds: float = 10.0,
        batch_size: int = 48,
        workers: int = 2,
        label_key: str = "labels",
        shuffle: int = 1000,
        max_bad: int = 100,
        seed: int = 0,
        n_train: int | None = None,
        prepare: Callable[[], None] | None = None,
    ):
        super().__init__()
        if task not in TASKS:
            raise ValueError(f"data.task={task!r}: give one of {', '.join(TASKS)}")
        for name, value in (("batch_size", batch_size), ("shuffle", shuffle), ("clip_seconds", clip_seconds)):
            if value <= 0:
                raise ValueError(f"data.{name}={value}: give more than 0")
        if isinstance(classes, str | PathLike):
            classes = ClassTable.audioset() if classes == "audioset" else ClassTable.from_csv(classes)
        self.train, self.val = [str(p) for p in train], [str(p) for p in val]
        self.classes, self.task, self.clip_seconds = classes, task, clip_seconds
        self.batch_size, self.workers, self.label_key = batch_size, workers, label_key
        self.shuffle, self.max_bad, self.seed = shuffle, max_bad, seed
        self._n_train, self._prepare, self._warned = n_train, prepare, False
        self.bad = BadClips("bad_clips.jsonl")

    def prepare_data(self) -> None:
        """Make missing shards (Lightning calls it on one process only)."""
        if self._prepare:
            self._prepare()

    @cached_property
    def train_shards(self) -> list[Shard]:
        shards = find_shards(self.train)
        log.info("%d shards to train on", len(shards))
        return shards

    @cached_property
    def val_shards(self) -> list[Shard]:
        return find_shards(self.val)

    def setup(self, stage: str | None = None) -> None:
        """Find the shards now, so that a missing one stops the run before anything is trained."""
        for place in (*self.train, *self.val):
            if (manifest := Manifest.read(Path(place).expanduser())) and manifest.skipped:
                for name, reason in manifest.skipped.items():
                    self.bad.add(place, name, f"left out of the shards: {reason}")
        longest = max(shard.longest for shard in (*self.train_shards, *self.val_shards))
        if longest > self.clip_seconds and not self._warned:
            self._warned = True
            log.warning(
                "there are clips of up to %.1f s; only their first %.1f s are heard (data.clip_seconds)",
                longest,
                self.clip_seconds,
            )

    @property
    def knows_train_clips(self) -> bool:
        return self._n_train is not None or all(shard.clips is not None for shard in self.train_shards)

    @property
    def train_clips(self) -> int:
        """Clips of one pass. Raises ShardError for shards without a manifest where n_train is not given."""
        if self._n_train is not None:
            return self._n_train
        if not self.knows_train_clips:
            raise ShardError(
                "the number of training clips is not known (no manifest.json beside the tars): give data.n_train"
            )
        return sum(shard.clips or 0 for shard in self.train_shards)

    def train_batches(self) -> int:
        """Batches of one epoch on this rank, as good as the manifests know it.

        Every worker ends on a smaller batch of its own.
        """
        share, workers = self._share(), max(1, self.workers)
        readers = share.world_size * workers
        total, sizes = self.train_clips, [shard.clips for shard in self.train_shards]
        clips = []
        for reader in range(share.rank * workers, (share.rank + 1) * workers):
            if None in sizes or len(sizes) < readers:
                clips.append(len(range(reader, total, readers)))
            else:
                clips.append(sum(size or 0 for size in sizes[reader::readers]))
        return sum(ceil(n / self.batch_size) for n in clips)

    def train_dataloader(self) -> DataLoader:
        """The stream of the trainer's current epoch; Lightning asks anew for every epoch."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        return self._loader(self._stages(self.train_shards, (self.seed, epoch)))

    def val_dataloader(self) -> DataLoader:
        return self._loader(self._stages(self.val_shards))

    test_dataloader = val_dataloader

    def _stages(self, shards: list[Shard], seed: tuple[int, ...] | None = None) -> list:
        """The stream of these shards: shuffled by `seed`, or with None in their order."""
        share, n_samples = self._share(), round(self.clip_seconds * SAMPLE_RATE)
        exclusive = self.task == "multiclass"
        return [
            partial(list_shards, shards, share, self.bad, seed),
            tarfile_to_samples(handler=partial(note_broken_tar, self.bad)),
            partial(miss_lost, shards=shards, share=share, bad=self.bad, seed=seed),
            partial(take_share, shards=shards, share=share),
            partial(parse, classes=self.classes, label_key=self.label_key, exclusive=exclusive, bad=self.bad),
            *([partial(shuffled, buffer=self.shuffle, share=share, seed=seed)] if seed else []),
            partial(decode, n_samples=n_samples, bad=self.bad),
            partial(batched, batch_size=self.batch_size),
        ]

    def _share(self) -> Share:
        trainer = self.trainer
        return Share(trainer.global_rank, trainer.world_size) if trainer else Share(0, 1)

    def _loader(self, stages: list) -> DataLoader:
        return DataLoader(
            DataPipeline(*stages),
            batch_size=None,  # batched in the worker, so one message carries a whole batch
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )
