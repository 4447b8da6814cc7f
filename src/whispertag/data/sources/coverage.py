"""What of AudioSet's csv files is in shards: which ids are missing, which are broken, how many clips a class has."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from braceexpand import braceexpand

from whispertag.data.shards import Manifest
from whispertag.data.sources.archives import members_of
from whispertag.data.sources.audioset import Segment, find_files, find_id
from whispertag.data.sources.recordings import Unusable
from whispertag.files import write_atomically
from whispertag.labels import ClassTable


@dataclass(frozen=True)
class Coverage:
    """`had` and `broken` are ids of `wanted`; `unlisted` are keys that are not. Each with its shard, or the reason."""

    classes: ClassTable
    wanted: Mapping[str, Segment]
    had: Mapping[str, str]
    broken: Mapping[str, str]
    unlisted: Mapping[str, str]

    @property
    def missing(self) -> list[Segment]:
        """Neither in the shards nor broken: there is no recording."""
        return [s for id, s in self.wanted.items() if id not in self.had and id not in self.broken and not s.problem]

    def per_class(self) -> list[tuple[str, int, int]]:
        """(name, clips wanted, clips had), in the order of the class table."""
        wanted = Counter(label for segment in self.wanted.values() for label in segment.labels)
        had = Counter(label for id in self.had for label in self.wanted[id].labels)
        return [(name, wanted[name], had[name]) for name in self.classes.names]

    def write(self, folder: Path) -> None:
        """missing.csv, broken.csv, unlisted.csv and classes.csv, each whole."""
        missing = [(s.id, s.start, s.end, ";".join(s.labels)) for s in self.missing]
        write_table(folder / "missing.csv", ("id", "start", "end", "labels"), missing)
        write_table(folder / "broken.csv", ("id", "reason"), self.broken.items())
        write_table(folder / "unlisted.csv", ("id", "shard"), self.unlisted.items())
        mids = self.classes.mids or [""] * len(self.classes)
        rows = [(i, mid, *row) for i, (mid, row) in enumerate(zip(mids, self.per_class()))]
        write_table(folder / "classes.csv", ("index", "mid", "name", "wanted", "had"), rows)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_atomically(path, text.getvalue().encode(errors="backslashreplace"))


def cover(
    wanted: Mapping[str, Segment],
    tars: Sequence[str],
    skipped: Mapping[str, str],
    classes: ClassTable,
    id_key: str | None = None,
) -> Coverage:
    """Which clips are in the tars: their ids are their names or, with `id_key`, what the json says under it.

    `skipped` is what the manifests say of clips that could not be used.
    """
    had: dict[str, str] = {}
    unlisted: dict[str, str] = {}
    broken = {id: segment.problem for id, segment in wanted.items() if segment.problem} | dict(skipped)
    for tar in tars:
        texts: dict[str, bytes] | None = {} if id_key else None
        names: list[str] = []
        for member in members_of(tar, texts):
            if isinstance(member, Unusable):
                broken[tar] = member.reason
            else:
                names.append(member.name.rpartition(".")[0])
        for name in names:
            id = Path(name).name if texts is None else _id(texts.get(name), id_key)
            if id is None:
                broken[f"{tar}:{name}"] = f"no json with the key {id_key!r} (--id-key)"
            elif found := find_id(id, wanted):
                had[found[0]] = tar
            else:
                unlisted[id] = tar
    return Coverage(classes, wanted, had, {name: why for name, why in broken.items() if name not in had}, unlisted)


def tars_of(places: Iterable[str | PathLike[str]]) -> tuple[list[str], dict[str, str]]:
    """Local folders of shards, tars and brace ranges → tars, and what the folders' manifests say was skipped."""
    tars: list[str] = []
    skipped: dict[str, str] = {}
    for place in places:
        for path in braceexpand(str(place)):
            if manifest := Manifest.read(Path(path).expanduser()):
                tars += [str(Path(path).expanduser() / shard["name"]) for shard in manifest.shards]
                skipped |= manifest.skipped
            else:
                tars += find_files([path], ("tar",))
    return tars, skipped


def _id(text: bytes | None, id_key: str | None) -> str | None:
    try:
        return str(json.loads(text or b"")[id_key])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
