"""AudioSet as people have it: Google's csv files, the names recordings are given, a folder of them → clips.

Tars and parquet files are in data/sources/archives.py.

What is listed but cannot be used (an unknown class, a row without sense, a broken tar) becomes a clip that says why
when it is read: so it is skipped by name, as a broken recording is.
"""

import csv
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from whispertag.audio import AUDIO_EXTENSIONS
from whispertag.data.sources.folders import Clip, key_of, stamp_of, with_keys_of_their_own
from whispertag.data.sources.recordings import Recording, Unusable
from whispertag.labels import ClassTable, UnknownLabel

Place = str | PathLike[str]
EXTENSIONS = (*AUDIO_EXTENSIONS, "webm", "mp4", "mkv", "aac")  # of whole videos as well
IDS = ("ytid", "video_id", "youtube_id", "id", "filename")  # how the first column is called, where it is


@dataclass(frozen=True, slots=True)
class Segment:
    """A row of Google's csv: which part of which video, and the classes in it. `problem`: why it cannot be used."""

    id: str
    split: str
    start: float  # seconds
    end: float
    labels: list[str]  # names
    problem: str = ""


def read_segments(tables: Iterable[Place], classes: ClassTable) -> dict[str, Segment]:
    """Google's csv files (`YTID, start_seconds, end_seconds, "mid,mid"` below lines of #) → id → segment, in order.

    The split of a segment is its csv's name without _segments. Labels are mids, names or indices. Raises ValueError for
    a file that is no such csv.
    """
    segments: dict[str, Segment] = {}
    for table in map(Path, tables):
        split = table.stem.removesuffix("_segments")
        try:
            with open(table.expanduser(), newline="", encoding="utf-8-sig") as file:
                rows = [row for row in csv.reader(file, skipinitialspace=True) if row and not row[0].startswith("#")]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{table}: not a csv file ({error})") from error
        if rows and rows[0][0].strip().lower() in IDS:
            rows = rows[1:]
        found = [_segment(row, split, classes, f"{table.name} row {n}") for n, row in enumerate(rows, 1)]
        if all(segment.problem for segment in found):
            why = f"the first: {found[0].problem}" if found else "it has none"
            raise ValueError(f"{table}: no row of YTID, start_seconds, end_seconds, labels can be used; {why}")
        for number, segment in enumerate(found, 1):
            if segment.id in segments:
                problem = f"{segment.id} stands in the csv files before"
                segment = Segment(f"{table.name} row {number}", split, 0.0, 0.0, [], problem)
            segments[segment.id] = segment
    return segments


def _segment(row: list[str], split: str, classes: ClassTable, name: str) -> Segment:
    try:
        start, end, labels = float(row[1]), float(row[2]), row[3]
        if not 0 <= start < end:
            raise ValueError(f"from {start:g} to {end:g} s")
        names = names_of([label.strip() for label in labels.split(",") if label.strip()], classes)
        return Segment(row[0].strip(), split, start, end, names)
    except IndexError:
        problem = f"only {len(row)} columns"
    except ValueError as error:  # UnknownLabel too
        problem = str(error)
    return Segment(row[0].strip() or name, split, 0.0, 0.0, [], f"{name}: {problem}")


def names_of(labels: Any, classes: ClassTable) -> list[str]:
    """Mids, names or indices, one or several → names. Raises UnknownLabel."""
    if not isinstance(labels, list):
        labels = [labels]
    try:
        return [classes.names[classes.index(label)] for label in labels]
    except UnknownLabel:
        if all(isinstance(label, str) and label.isdecimal() for label in labels):
            return [classes.names[classes.index(int(label))] for label in labels]
        raise


def find_id(stem: str, known: Mapping[str, Any]) -> tuple[str, float | None] | None:
    """A file's name → (the id of `known` it is of, where it says it begins), or None.

    >>> find_id("Y-a_1", {"-a_1": 0}), find_id("-a_1_30.000_40.000", {"-a_1": 0}), find_id("a_5000", {"a": 0})
    (('-a_1', None), ('-a_1', 30.0), ('a', 5000.0))
    """
    for name in (stem, stem[1:] if stem.startswith("Y") else stem):
        if name in known:
            return name, None
        for pattern in (r"(.+)_(\d+(?:\.\d+)?)", r"(.+)_(\d+(?:\.\d+)?)_\d+(?:\.\d+)?"):
            if (match := re.fullmatch(pattern, name)) and match[1] in known:
                return match[1], float(match[2])
    return None


def list_csv(tables: Iterable[Place], root: Place, classes: ClassTable) -> list[Clip]:
    """The segments that have a recording somewhere under `root`, in the order of the csv files.

    Recordings are called <id>, Y<id>, <id>_<start> or <id>_<start>_<end> (seconds or milliseconds), any extension;
    one that bears no start and is clearly longer than its segment is a whole video, and is cut. A segment without a
    recording is not listed: see data/sources/coverage.py.
    """
    segments = read_segments(tables, classes)
    audio: dict[str, Recording | Unusable] = {}
    for path in find_files([root], EXTENSIONS):
        if found := find_id(os.path.splitext(os.path.basename(path))[0], segments):
            offer(audio, segments[found[0]], found[1], Recording(path))
    if not audio:
        id = next(iter(segments))
        raise ValueError(f"{root}: no recording of any of the {len(segments):,} ids, such as {id}.flac or Y{id}.wav")
    return clips_of(segments, {id: audio[id] for id in segments if id in audio})


def offer(audio: dict[str, Recording | Unusable], segment: Segment, start: float | None, recording: Recording) -> None:
    """The first recording of a segment is taken, unless its name says that it begins elsewhere."""
    if start is not None and min(abs(start - segment.start), abs(start / 1000 - segment.start)) >= 1:
        other = f"{recording.where}: begins at {start:g} by its name, its segment at {segment.start:g} s"
        audio.setdefault(segment.id, Unusable(other))
    elif not isinstance(audio.get(segment.id), Recording):
        span = None if start is not None else (segment.start, segment.end)
        audio[segment.id] = replace(recording, segment=span)


def clips_of(segments: Mapping[str, Segment], audio: Mapping[str, Any]) -> list[Clip]:
    """A clip for everything in `audio`, in its order, and for what is wrong in the csv files."""
    clips = []
    for id, found in audio.items():
        segment = segments[id]
        if not segment.problem:
            stamp = stamp_of(found.path) if hasattr(found, "path") else (0, 0)
            clips.append(Clip(key_of(id), segment.split, segment.labels, found, {"start": segment.start}, stamp))
    for segment in segments.values():
        if segment.problem:
            clips.append(Clip(key_of(segment.id), segment.split, [], Unusable(segment.problem), {"source": segment.id}))
    return with_keys_of_their_own(clips)


def find_files(places: Iterable[Place], extensions: tuple[str, ...]) -> list[str]:
    """Files, brace ranges of them, and those with these extensions anywhere in folders, sorted.

    Raises if one is missing or all are empty.
    """
    from braceexpand import braceexpand

    files: list[str] = []
    for place in (path for given in places for path in braceexpand(os.path.expanduser(given))):
        if not os.path.exists(place):
            raise FileNotFoundError(f"{place}: no such file or folder")
        if os.path.isfile(place):
            files.append(str(place))
        for folder, folders, names in os.walk(place):
            folders.sort()
            names = [name for name in names if name.lower().endswith(tuple(f".{e}" for e in extensions))]
            files += [os.path.join(folder, name) for name in sorted(names)]
    if not files:
        raise FileNotFoundError(f"{', '.join(map(str, places))}: no .{', .'.join(extensions)} file in it")
    return files
