"""Feature shards: a backbone's pooled states of a data set, computed once (extract.py) and read by every training.

The clips of one audio shard, in its order, lie in one or more parts, each a safetensors file:
    states_NLTD            float32 or float16, or int8 with
    offset_LD, scale_LD    float32: a state is offset + scale · int8, for each layer and channel of this part
    clips                  in the header: of each clip its key and the names of its classes
When all parts are there a json beside them says so; without it the shard is not done. All lie in a folder named by what
defines the states, and a shard's files are named by what the shard is, so stale features cannot be read.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whispertag.data.shards import Shard, ShardError
from whispertag.files import write_atomically

FORMAT = 1
PRECISIONS = ("float32", "float16", "int8")
PART_BYTES = 2**28  # of states before quantisation: what is held in memory while a part is made


class FeaturesMissing(ShardError):
    """Features that have not been computed; the message says how to."""


@dataclass(frozen=True)
class Definition:
    """What defines the states of a clip.

    backbone      the checkpoint's fingerprint
    layers        which encoder layers
    precision     float32 | float16 | int8
    """

    backbone: str
    context: float | str
    pool: int
    layers: tuple[int, ...]
    clip_seconds: float
    precision: str = "float16"
    format: int = FORMAT

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"features.precision={self.precision!r}: give one of {', '.join(PRECISIONS)}")

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Part:
    """One file of states of `clips` clips of an audio shard."""

    path: str
    clips: int
    shard: str


@dataclass(frozen=True)
class FeatureStore:
    """The feature shards of one definition, in `{root}/features/{name}-{digest}/`.

    name    of the backbone, for people
    picked  which of the definition's layers to hand out, as positions in it; None: all
    """

    root: Path
    name: str
    definition: Definition
    picked: tuple[int, ...] | None = None
    _known: dict[Shard, dict[str, Any]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, root: Path, name: str, definition: Definition, n_layers: int) -> "FeatureStore":
        """Features of just these layers, or, where there are only those of all layers, a pick of them."""
        exact = cls(root, name, definition)
        whole = cls(root, name, replace(definition, layers=tuple(range(n_layers))), definition.layers)
        return whole if whole.folder.exists() and not exact.folder.exists() else exact

    @property
    def folder(self) -> Path:
        return self.root / "features" / f"{Path(self.name).stem}-{self.definition.digest}"

    def begin(self) -> None:
        """Make the folder, and say in it what it holds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {"backbone_name": self.name} | asdict(self.definition)
        write_atomically(self.folder / "about.json", json.dumps(about, indent=1).encode())

    def file(self, shard: Shard, ending: str) -> Path:
        """One of a shard's files."""
        what = hashlib.sha256(identity(shard).encode()).hexdigest()[:12]
        return self.folder / f"{Path(shard.path).stem}-{what}{ending}"

    def done(self, shard: Shard) -> dict[str, Any] | None:
        """What is known of a shard whose features are all there; None if they are not. Read once: it is asked often."""
        if shard in self._known:
            return self._known[shard]
        try:
            about = self._known[shard] = json.loads(self.file(shard, ".json").read_text())
            return about
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ShardError(
                f"{self.file(shard, '.json')}: not json ({error}); delete it and run extract.py"
            ) from error

    def labels(self, shards: Sequence[Shard]) -> Counter[str]:
        """Label → number of clips that carry it, of shards that are done."""
        return sum((Counter((self.done(shard) or {}).get("labels")) for shard in shards), Counter())

    def parts(self, shards: Sequence[Shard]) -> list[Part]:
        """All parts of these shards, in order. Raises FeaturesMissing if a shard is not done."""
        found, missing = [], []
        for shard in shards:
            if (about := self.done(shard)) is None:
                missing.append(shard.path)
                continue
            found += [Part(str(self.folder / p["file"]), p["clips"], shard.path) for p in about["parts"]]
        if missing:
            raise FeaturesMissing(
                f"{len(missing)} of {len(shards)} shards have no features of this backbone, context, layers, pooling "
                f"and precision in {self.folder} (the first: {missing[0]}): run extract.py with the same arguments"
            )
        return found


def identity(shard: Shard) -> str:
    """What tells a shard from every other, also from another one under the same name."""
    if "://" in shard.path or shard.path.startswith("pipe:"):
        return f"{shard.path} {shard.bytes}"
    stat = os.stat(shard.path)
    return f"{Path(shard.path).resolve()} {stat.st_size} {stat.st_mtime_ns}"


class ShardFeatures:
    """Collects the states of one shard, writes its parts, and at last the json that says they are all there.

    Clips come in the order of the shard, so the same shard gives the same bytes.
    """

    def __init__(self, store: FeatureStore, shard: Shard):
        self.store, self.shard = store, shard
        self._parts: list[dict[str, Any]] = []
        self._labels_seen: Counter[str] = Counter()
        self._states: list[Tensor] = []
        self._keys: list[str] = []
        self._labels: list[list[str]] = []

    def add(self, states_BLTD: Tensor, keys: Sequence[str], labels: Sequence[list[str]]) -> None:
        """float32 states on any device; of each clip its key and the names of its classes."""
        if self.store.definition.precision == "float16":
            states_BLTD = states_BLTD.half()  # before it crosses the bus
        self._states.append(states_BLTD.cpu())
        self._keys += keys
        self._labels += labels
        if sum(states.nbytes for states in self._states) >= PART_BYTES:
            self._write_part()

    def _write_part(self) -> None:
        from safetensors.torch import save_file

        states_NLTD = torch.cat(self._states)
        if not states_NLTD.isfinite().all():
            raise ShardError(
                f"{self.shard.path}: states that are not finite: take features.precision=float32 or model.dtype=float32"
            )
        path = self.store.file(self.shard, f".{len(self._parts):03d}.safetensors")
        # One entry: of several, safetensors draws the order, and the bytes would not be the same again.
        header = {"clips": json.dumps(list(zip(self._keys, self._labels, strict=True)))}
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            save_file(encode(states_NLTD, self.store.definition.precision), part, metadata=header)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        self._parts.append({"file": path.name, "clips": len(self._keys), "bytes": path.stat().st_size})
        self._labels_seen.update(name for names in self._labels for name in names)
        self._states, self._keys, self._labels = [], [], []

    def finish(self, skipped: dict[str, str]) -> None:
        """skipped  name of a clip that could not be heard → why"""
        if self._keys:
            self._write_part()
        about = {
            "shard": self.shard.path,
            "clips": sum(part["clips"] for part in self._parts),
            "labels": dict(sorted(self._labels_seen.items())),
            "parts": self._parts,
            "skipped": skipped,
        }
        write_atomically(self.store.file(self.shard, ".json"), json.dumps(about, indent=1).encode())


def encode(states_NLTD: Tensor, precision: str) -> dict[str, Tensor]:
    """float32 states → the tensors of a part.

    int8 is affine: Whisper's channels have large means and deviations of their own, so each channel of each layer has
    an offset and a scale, which no value overflows.
    """
    if precision == "float32":
        return {"states_NLTD": states_NLTD.float().contiguous()}
    if precision == "float16":
        return {"states_NLTD": states_NLTD.half().contiguous()}
    low_LD, high_LD = states_NLTD.amin(dim=(0, 2)), states_NLTD.amax(dim=(0, 2))
    offset_LD, scale_LD = (low_LD + high_LD) / 2, ((high_LD - low_LD) / 254).clamp(min=torch.finfo(torch.float32).tiny)
    steps = ((states_NLTD - offset_LD[:, None]) / scale_LD[:, None]).round_().clamp_(-127, 127)
    return {"states_NLTD": steps.to(torch.int8), "offset_LD": offset_LD, "scale_LD": scale_LD}


def decode(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of features as a worker hands it out → states_BLTD in float32, on whatever device it is."""
    states_BLTD = batch["states_BLTD"].float()
    if "scale_PLD" not in batch:
        return batch | {"states_BLTD": states_BLTD}
    made_in_B = batch["part_B"]
    if len(batch["scale_PLD"]) == 1:
        scale_BLD, offset_BLD = batch["scale_PLD"], batch["offset_PLD"]
    else:
        scale_BLD, offset_BLD = batch["scale_PLD"][made_in_B], batch["offset_PLD"][made_in_B]
    states_BLTD = torch.addcmul(offset_BLD[:, :, None], states_BLTD, scale_BLD[:, :, None])
    rest = {k: v for k, v in batch.items() if k not in ("scale_PLD", "offset_PLD", "part_B")}
    return rest | {"states_BLTD": states_BLTD}
