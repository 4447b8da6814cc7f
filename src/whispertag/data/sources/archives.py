"""Recordings in tars and in parquet files → clips, listed without reading the audio."""

import json
import tarfile
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

from whispertag.audio import AUDIO_EXTENSIONS
from whispertag.data.sources.audioset import Place, clips_of, find_files, find_id, names_of, offer, read_segments
from whispertag.data.sources.folders import Clip, key_of, stamp_of, with_keys_of_their_own
from whispertag.data.sources.recordings import Cell, Recording, Unusable
from whispertag.labels import ClassTable


def list_tars(places: Iterable[Place], tables: Iterable[Place], classes: ClassTable) -> list[Clip]:
    """Tars (or folders of them) of recordings named as list_csv wants them, labelled by Google's csv files.

    In the order of the tars; what is in none of the csv files is left out.
    """
    segments = read_segments(tables, classes)
    audio: dict[str, Recording | Unusable] = {}
    broken = []
    for path in find_files(places, ("tar",)):
        for member in members_of(path):
            if isinstance(member, Unusable):
                broken.append(_broken(path, next(iter(segments.values())).split, member))
            elif found := find_id(PurePosixPath(member.name).stem, segments):
                offer(audio, segments[found[0]], found[1], _recording(path, member))
    return clips_of(segments, audio) + broken


def list_labelled_tars(places: Iterable[Place], label_key: str, classes: ClassTable, split: str) -> list[Clip]:
    """Tars (or folders of them) with a json beside each recording, which keeps its labels under `label_key`."""
    clips: list[Clip] = []
    for path in find_files(places, ("tar",)):
        texts: dict[str, bytes] = {}
        audio: dict[str, tarfile.TarInfo] = {}
        for member in members_of(path, texts):
            if isinstance(member, Unusable):
                clips.append(_broken(path, split, member))
            else:
                audio.setdefault(member.name.rsplit(".", 1)[0], member)
        for stem, member in audio.items():
            info, recording = {"source": f"{path}:{member.name}"}, _recording(path, member)
            try:
                labels = names_in(texts.get(stem), label_key, classes)
                clips.append(Clip(key_of(member.name), split, labels, recording, info, stamp_of(path)))
            except ValueError as error:
                clips.append(Clip(key_of(member.name), split, [], Unusable(str(error)), info))
    return with_keys_of_their_own(clips)


def names_in(text: bytes | None, label_key: str, classes: ClassTable) -> list[str]:
    """The classes that a sample's json names. Raises ValueError."""
    if text is None:
        raise ValueError("no json beside it")
    try:
        info = json.loads(text)
    except RecursionError as error:
        raise ValueError("its json is nested too deep") from error
    if not isinstance(info, dict) or label_key not in info:
        raise ValueError(f"its json has no key {label_key!r} (--label-key)")
    return names_of(info[label_key], classes)


def _recording(path: str, member: tarfile.TarInfo) -> Recording:
    return Recording(path, member.offset_data, member.size, member.name)


def _broken(path: str, split: str, why: Unusable) -> Clip:
    return Clip(key_of(path), split, [], why, {"source": path})


def members_of(path: str, texts: dict[str, bytes] | None = None) -> Iterator[tarfile.TarInfo | Unusable]:
    """The recordings in a tar, by its headers alone; last, if it is broken, why.

    The texts of its json files go into `texts`, by their names without extension.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # or memory grows with the tar
                stem, _, extension = member.name.rpartition(".")
                if not member.isreg() or member.issparse():
                    continue  # links, devices, folders: nothing is in them
                if extension.lower() in AUDIO_EXTENSIONS:
                    yield member
                elif extension.lower() == "json" and texts is not None and (file := tar.extractfile(member)):
                    texts[stem] = file.read(2**20)
            # tarfile ends at the first header it does not understand, as if nothing came after it.
            tar.fileobj.seek(tar.offset)
            rest = iter(partial(tar.fileobj.read, 2**20), b"")
            if not (end := next(rest, b"")) or any(map(any, chain([end], rest))):
                yield Unusable(f"the tar is cut off or damaged at byte {tar.offset:,}; what comes after it is lost")
    except (tarfile.TarError, OSError, ValueError) as error:
        yield Unusable(f"the tar cannot be listed to its end: {error}")


def list_parquet(places: Iterable[Place], classes: ClassTable, split: str, tables: Iterable[Place] = ()) -> list[Clip]:
    """Parquet files (or folders of them) with columns video_id, audio and labels (or human_labels).

    With `tables`, labels and splits come from Google's csv files, and what is in none of them is left out.
    """
    pyarrow = _pyarrow()
    segments = read_segments(tables, classes) if tables else None
    clips: list[Clip] = []
    cells: dict[str, Cell] = {}
    for path in find_files(places, ("parquet",)):
        stamp = stamp_of(path)
        try:
            for group, row, id, labels in _rows(path, segments is None):
                cell, info = Cell(path, group, row), {"source": f"{path}:{id}"}
                if segments is not None:
                    if found := find_id(id, segments):
                        cells.setdefault(found[0], cell)
                    continue
                try:
                    clips.append(Clip(key_of(id), split, names_of(labels, classes), cell, info, stamp))
                except ValueError as error:
                    clips.append(Clip(key_of(id), split, [], Unusable(str(error)), info))
        except (pyarrow.ArrowException, OSError) as error:
            where = split if segments is None else next(iter(segments.values())).split
            clips.append(_broken(path, where, Unusable(f"cannot be read to its end: {error}")))
    return with_keys_of_their_own(clips) if segments is None else clips_of(segments, cells) + clips


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ValueError("parquet files are read with pyarrow: pip install 'whispertag[parquet]'") from error
    return pyarrow


def _rows(path: str, with_labels: bool) -> Iterator[tuple[int, int, str, Any]]:
    """(row group, row, id, labels) of all rows; no audio is read."""
    with _pyarrow().parquet.ParquetFile(path, pre_buffer=False) as file:
        columns = file.schema_arrow.names
        labels = next((name for name in ("labels", "human_labels") if name in columns), None) if with_labels else None
        if missing := [name for name in ("video_id", "audio") if name not in columns]:
            raise ValueError(f"{path}: no column {missing[0]!r}, only {', '.join(columns)}")
        if with_labels and labels is None:
            raise ValueError(f"{path}: no column 'labels' or 'human_labels', only {', '.join(columns)}")
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, ["video_id", *([labels] if labels else [])], use_threads=False)
            for row, values in enumerate(rows.to_pylist()):
                yield group, row, str(values["video_id"]), values.get(labels)
