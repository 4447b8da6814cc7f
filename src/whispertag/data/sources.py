"""Where clips come from: a folder in ESC-50's layout, an own folder + csv, a synthesiser → shards."""

import csv
import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from whispertag.audio import AUDIO_EXTENSIONS, AudioError, read_wave
from whispertag.data.shards import Manifest, ShardError, ShardWriter
from whispertag.labels import ClassTable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """A clip before it is in a shard: a key, its labels, and how to get its wave_S."""

    key: str
    split: str
    labels: list[str]
    read: Callable[[], tuple[np.ndarray, list[str]]]  # → wave_S and labels (a synthesiser knows late)
    info: dict[str, Any] = field(default_factory=dict)
    stamp: tuple[int, int] = (0, 0)  # size and time of its file, to notice another recording of that name


def read_esc50(root: str | PathLike[str]) -> tuple[list[Clip], ClassTable]:
    """ESC-50's layout: `audio/` and `meta/esc50.csv` (filename, fold, target, category).

    Any file with these columns under meta/ will do, any classes, any audio format; each fold
    becomes a split `fold1 …`. Classes come in the order of `target`.
    """
    root = Path(root).expanduser()
    tables = sorted((root / "meta").glob("*.csv"))
    if len(tables) != 1:
        found = f"{len(tables)} csv files" if tables else "no csv file"
        raise FileNotFoundError(f"{root}/meta: {found}; ESC-50's layout has meta/esc50.csv and audio/")
    rows = _read_rows(tables[0], ("filename", "fold", "target", "category"))
    names: dict[int, str] = {}
    for row in rows:
        if not row["target"].isdecimal():
            raise ValueError(f"{tables[0]}: {row['filename']}: target {row['target']!r} is not a number")
        target = int(row["target"])
        if names.setdefault(target, row["category"]) != row["category"]:
            raise ValueError(f"{tables[0]}: target {target} is both {names[target]!r} and {row['category']!r}")
    classes = ClassTable(tuple(names[target] for target in sorted(names)))
    clips = [
        _file_clip(root / "audio" / row["filename"], row["filename"], f"fold{row['fold']}", [row["category"]])
        for row in rows
    ]
    return _with_keys_of_their_own(clips), classes


def read_folder(
    root: str | PathLike[str], table: str | PathLike[str], separator: str = ";"
) -> tuple[list[Clip], ClassTable]:
    """An own folder of recordings and a csv of `filename, labels[, split]`.

    `labels` are names joined by `separator`; `split` (default "train") is free: train, val, fold3.
    The classes are the names in the csv, sorted.
    """
    root, table = Path(root).expanduser(), Path(table).expanduser()
    rows = _read_rows(table, ("filename", "labels"))
    clips = []
    for row in rows:
        labels = [label.strip() for label in row["labels"].split(separator) if label.strip()]
        split = row.get("split", "").strip().lower() or "train"
        clips.append(_file_clip(root / row["filename"], row["filename"], split, labels))
    if not any(clip.labels for clip in clips):
        raise ValueError(f"{table}: no clip has a label in column 'labels'")
    return _with_keys_of_their_own(clips), ClassTable(tuple(sorted({label for clip in clips for label in clip.labels})))


def synthesise(seed: int, n_train: int, n_eval: int) -> tuple[list[Clip], ClassTable]:
    """Clips of data/synth.py; clip i of a seed is the same whatever the counts."""
    from whispertag.data import synth

    def clip(split: str, stream: int, index: int) -> Clip:
        # The two splits are two streams of the generator, so growing one never moves the other.
        return Clip(f"{split}-{index:06d}", split, [], lambda: synth.clip(2 * seed + stream, index))

    clips = [clip("train", 0, i) for i in range(n_train)] + [clip("eval", 1, i) for i in range(n_eval)]
    return clips, ClassTable.audioset().subset(synth.CLASSES)


def _read_rows(table: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    if not table.is_file():
        raise FileNotFoundError(f"{table}: no such csv file")
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, restval=""))
    if not rows:
        raise ValueError(f"{table}: no rows")
    if missing := [c for c in columns if c not in rows[0]]:
        raise ValueError(f"{table}: no column {missing[0]!r}; it needs {', '.join(columns)}")
    times = Counter(row["filename"] for row in rows)
    if twice := [name for name, n in times.items() if n > 1]:
        raise ValueError(f"{table}: {twice[0]!r} stands in it {times[twice[0]]} times; a file has one row")
    return rows


def _file_clip(path: Path, name: str, split: str, labels: list[str]) -> Clip:
    # WebDataset ends a key at its first dot; a folder in the name would nest inside the tar.
    stem = name.rsplit(".", 1)[0] if name.lower().endswith(AUDIO_EXTENSIONS) else name
    key = stem.replace(".", "_").replace("/", "__")
    stamp = (0, 0)  # a missing file is skipped by name later
    if path.is_file():
        stamp = (path.stat().st_size, path.stat().st_mtime_ns)
    return Clip(key, split, labels, lambda: (read_wave(path), labels), {"source": name}, stamp)


def _with_keys_of_their_own(clips: list[Clip]) -> list[Clip]:
    """Files that differ only in their extension, or in a dot, would share a key: tell them apart."""
    times = Counter(clip.key for clip in clips)

    def own(clip: Clip) -> Clip:
        digest = hashlib.sha256(clip.info["source"].encode()).hexdigest()[:8]
        return replace(clip, key=f"{clip.key}~{digest}") if times[clip.key] > 1 else clip

    return [own(clip) for clip in clips]


def write_shards(
    clips: list[Clip],
    folder: Path,
    options: dict[str, Any],
    max_bad: int,
    clips_per_shard: int = 100,
    workers: int = 2,
) -> None:
    """Write every split into `folder/<split>/`; splits that are there already are left alone.

    A clip that cannot be read is skipped by name, which the manifest keeps; more than `max_bad`
    of them stop the work with a ShardError.
    """
    from rich.progress import track

    by_split: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_split[clip.split].append(clip)
    for split, members in by_split.items():
        if Manifest.read(folder / split):  # complete: the manifest is written last
            continue
        with ShardWriter(folder / split, split, options, clips_per_shard) as writer:
            waves = _read_ahead(members, workers)
            for clip, wave in track(waves, f"{split} → shards", total=len(members), transient=True):
                if isinstance(wave, Exception):
                    writer.skip(clip.info.get("source", clip.key), str(wave))
                    log.warning("skipped %s: %s", clip.info.get("source", clip.key), wave)
                    if len(writer.manifest.skipped) > max_bad:
                        raise ShardError(
                            f"more than data.max_bad={max_bad} clips of {split} cannot be used; "
                            f"the last: {clip.info.get('source', clip.key)}: {wave}"
                        )
                    continue
                wave_S, labels = wave
                writer.write(clip.key, wave_S, labels, **clip.info)
        log.info("%s: %d clips, %d skipped", folder / split, writer.manifest.clips, len(writer.manifest.skipped))


def _read_ahead(clips: list[Clip], workers: int) -> Iterator[tuple[Clip, tuple[np.ndarray, list[str]] | Exception]]:
    """Read clips on several threads, in order, at most a few ahead of the writer."""

    def read(clip: Clip) -> tuple[np.ndarray, list[str]] | Exception:
        try:
            return clip.read()
        except (AudioError, FileNotFoundError) as error:
            return error  # whatever else goes wrong in reading may be mended: it stops the work

    with ThreadPoolExecutor(workers) as pool:
        rest = iter(clips)
        ahead = [(clip, pool.submit(read, clip)) for clip in islice(rest, 4 * workers)]
        while ahead:
            clip, future = ahead.pop(0)
            yield clip, future.result()
            ahead += [(clip, pool.submit(read, clip)) for clip in islice(rest, 1)]
