"""Where clips come from: a folder in ESC-50's layout, an own folder + csv, a synthesiser."""

import csv
import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from whispertag.audio import AUDIO_EXTENSIONS
from whispertag.data.sources.recordings import Audio, Recording
from whispertag.labels import ClassTable


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip before it is in a shard: a key, its labels, and where its audio is. Two million of them fit in memory."""

    key: str
    split: str
    labels: list[str]
    audio: Audio
    info: dict[str, Any] = field(default_factory=dict)  # what else its json says; `source` is its name in reports
    stamp: tuple[int, int] = (0, 0)  # size and time of its file, to notice another recording of that name

    @property
    def name(self) -> str:
        return self.info.get("source", self.key)

    def read(self) -> tuple[np.ndarray, list[str]]:
        """→ wave_S and labels, which a synthesiser knows late."""
        wave_S, labels = self.audio.read()
        return wave_S, self.labels if labels is None else labels


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Clip `index` of data/synth/clips.py's data set `seed`."""

    seed: int
    index: int

    def read(self) -> tuple[np.ndarray, list[str]]:
        from whispertag.data.synth.clips import clip

        return clip(self.seed, self.index)

    def encoded(self) -> None:
        return None


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
    return with_keys_of_their_own(clips), classes


def read_folder(root: str | PathLike[str], table: str | PathLike[str]) -> tuple[list[Clip], ClassTable]:
    """An own folder of recordings and a csv of `filename, labels[, split]`.

    `labels` are names joined by ";"; `split` (default "train") is free: train, val, fold3.
    The classes are the names in the csv, sorted.
    """
    root, table = Path(root).expanduser(), Path(table).expanduser()
    rows = _read_rows(table, ("filename", "labels"))
    clips = []
    for row in rows:
        labels = [label.strip() for label in row["labels"].split(";") if label.strip()]
        split = row.get("split", "").strip().lower() or "train"
        clips.append(_file_clip(root / row["filename"], row["filename"], split, labels))
    if not any(clip.labels for clip in clips):
        raise ValueError(f"{table}: no clip has a label in column 'labels'")
    return with_keys_of_their_own(clips), ClassTable(tuple(sorted({label for clip in clips for label in clip.labels})))


def synthesise(seed: int, n_train: int, n_eval: int) -> tuple[list[Clip], ClassTable]:
    """Clips of data/synth/clips.py; clip i of a seed is the same whatever the counts."""
    from whispertag.data.synth.clips import CLASSES

    def clip(split: str, stream: int, index: int) -> Clip:
        # The two splits are two streams of the generator, so growing one never moves the other.
        return Clip(f"{split}-{index:06d}", split, [], Synthetic(2 * seed + stream, index))

    clips = [clip("train", 0, i) for i in range(n_train)] + [clip("eval", 1, i) for i in range(n_eval)]
    return clips, ClassTable.audioset().subset(CLASSES)


def _read_rows(table: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    if not table.is_file():
        raise FileNotFoundError(f"{table}: no such csv file")
    with open(table, newline="", encoding="utf-8-sig") as file:
        try:
            rows = list(csv.DictReader(file, restval=""))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{table}: no csv in UTF-8 ({error})") from error
    if not rows:
        raise ValueError(f"{table}: no rows")
    if missing := [c for c in columns if c not in rows[0]]:
        raise ValueError(f"{table}: no column {missing[0]!r}; it needs {', '.join(columns)}")
    if wide := next((row for row in rows if None in row), None):
        raise ValueError(
            f"{table}: the row of {wide[columns[0]]!r} has more cells than there are columns; quote what holds a comma"
        )
    times = Counter(row["filename"] for row in rows)
    if twice := [name for name, n in times.items() if n > 1]:
        raise ValueError(f"{table}: {twice[0]!r} stands in it {times[twice[0]]} times; a file has one row")
    return rows


def _file_clip(path: Path, name: str, split: str, labels: list[str]) -> Clip:
    return Clip(key_of(name), split, labels, Recording(str(path)), {"source": name}, stamp_of(path))


def key_of(name: str) -> str:
    """A file's name as a key: WebDataset ends it at its first dot, and a folder in it would nest inside the tar."""
    stem = name.rsplit(".", 1)[0] if name.lower().endswith(AUDIO_EXTENSIONS) else name
    stem = stem.encode(errors="surrogateescape").decode(errors="backslashreplace")  # names that are no UTF-8
    return re.sub(r"[\0-\37\177]", "_", stem.replace(".", "_").replace("/", "__"))


def stamp_of(path: str | PathLike[str]) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError:
        return 0, 0  # a missing file is skipped by name later
    return stat.st_size, stat.st_mtime_ns


def with_keys_of_their_own(clips: list[Clip]) -> list[Clip]:
    """Files that differ only in their extension, or in a dot, would share a key: tell them apart."""
    times = Counter(clip.key for clip in clips)

    def own(clip: Clip) -> Clip:
        digest = hashlib.sha256(clip.name.encode(errors="backslashreplace")).hexdigest()[:8]
        return replace(clip, key=f"{clip.key}~{digest}") if times[clip.key] > 1 or not clip.key else clip

    return [own(clip) for clip in clips]
