"""Shards: the one sample schema, and the manifest that describes a folder of them.

A sample in a tar is `{key}.flac` (or any of AUDIO_EXTENSIONS) and `{key}.json`, which holds
    labels   the sounds in the clip: names, mids or indices of the class table
    seconds  its length
and whatever else the source knows. A folder of shards has a manifest.json (see Manifest).
"""

import json
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from whispertag.files import write_atomically

MANIFEST = "manifest.json"


class ShardError(RuntimeError):
    """Shards that are missing, or cannot be read or written; names the file."""


@dataclass
class Manifest:
    """What a folder of shards holds.

    shards   one {name, clips, bytes, sha256, seconds, longest (in seconds), labels: {label: clips}} each; `name` is
             relative to the folder, or absolute; shards indexed where others made them may lack sha256
    options  what made them: the source and its arguments
    """

    shards: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # name of a bad clip → reason

    @property
    def clips(self) -> int:
        return sum(shard["clips"] for shard in self.shards)

    @property
    def seconds(self) -> float:
        return sum(shard["seconds"] for shard in self.shards)

    @property
    def labels(self) -> Counter[str]:
        """Label → number of clips that carry it."""
        return sum((Counter(shard["labels"]) for shard in self.shards), Counter())

    @classmethod
    def read(cls, folder: Path, name: str = MANIFEST) -> "Manifest | None":
        """The manifest of a folder, or None if it has none (ready-made shards)."""
        path = folder / name
        if not path.exists():
            return None
        try:
            return cls.parse(path.read_bytes())
        except (ValueError, TypeError, AttributeError) as error:
            raise ShardError(f"{path}: not a manifest ({error}); delete the folder to have it made again") from error

    @classmethod
    def parse(cls, text: bytes) -> "Manifest":
        return cls(**{k: v for k, v in json.loads(text).items() if k not in _TOTALS})

    def write(self, folder: Path, name: str = MANIFEST) -> None:
        totals = {"clips": self.clips, "seconds": round(self.seconds, 3), "labels": dict(self.labels)}
        write_atomically(folder / name, json.dumps(totals | asdict(self), indent=1).encode())


_TOTALS = ("clips", "seconds", "labels")  # written for the reader of the file, derived when read


@dataclass(frozen=True)
class Shard:
    """A tar to read and, where a manifest tells, what must be in it."""

    path: str
    clips: int | None = None
    bytes: int | None = None
    longest: float = 0.0  # seconds of its longest clip

    def damage(self) -> str | None:
        """Why this file is not the one that was written; None if it is, or if nobody knows (of a remote one)."""
        if self.bytes is None or is_remote(self.path) or (size := os.path.getsize(self.path)) == self.bytes:
            return None
        return f"truncated or changed: {size:,} bytes where its manifest says {self.bytes:,}"


def is_remote(place: str) -> bool:
    """Whether this is a URL or a `pipe:` command, and no path."""
    return place.startswith("pipe:") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", place) is not None
