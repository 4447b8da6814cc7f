"""The commands `import` and `release`: heads published with Whisper-AT (.pth) ↔ ours (head.safetensors).

A published head is a dictionary of tensors; the pools follow from which there are, the Whisper from the file's name.
"""

import argparse
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whispertag.listen.released import SCHEME, layers_and_width, published_file, read_tensors, whisper_of

if TYPE_CHECKING:
    from torch import Tensor

    from whispertag.model.checkpoint import Description
    from whispertag.model.heads import TaggingHead

HEADS = {  # Whisper-AT's nine, as conf/head/ calls them: time pool, layer pool, projected; which pool is first
    ("mean", "last", False): ("last_mlp", "layer"),
    ("mean", "mean", False): ("mean_mlp", "time"),
    ("mean", "weighted", False): ("wa_mlp", "time"),
    ("attend", "last", False): ("last_tr", "layer"),
    ("attend", "mean", False): ("mean_tr", "layer"),
    ("attend", "weighted", False): ("wa_tr", "layer"),
    ("attend", "weighted", True): ("wa_tr_512", "layer"),
    ("attend", "attend", False): ("tl_tr", "time"),
    ("attend", "attend", True): ("tl_tr_512", "time"),
}
ATTENTION_HEADS = {"time_heads": 1, "layer_heads": 8}
POOL, CONTEXT, CLIP_SECONDS = 20, 10, 10.0  # of Whisper-AT's training

KEYS = {  # how a tensor's name begins: theirs → ours
    "down_layer.": "project.",
    "time_tr.": "time_pool.block.",
    "layer_tr.": "layer_pool.block.",
    "layer_weight": "layer_pool.weight",
    "mlp_layer.": "classify.",
}
PREFIX = "at_model."  # before all names in the package's files; the training code's have module., or nothing


def read_published(
    source: str | os.PathLike[str], model: str | None = None, layer: str | None = None
) -> "tuple[Description, dict[str, Tensor]]":
    """A published head → its description and weights, as read_head gives them of ours. Nothing is unpickled.

    source  a .pth file, or whisper-at:<model>[-low] for the file that Whisper-AT's package keeps of it
    model   the Whisper it listens to: name, checkpoint or folder (None: as the file's name says)
    layer   "mean" or "last": the layer pool of heads whose tensors do not tell these two apart

    Raises FileNotFoundError, and ValueError for what is no head of Whisper-AT or listens to another Whisper.
    """
    description, head = _read(source, model, layer)
    return description, head.state_dict()


def write_published(path: str | os.PathLike[str], description: "Description", weights: "dict[str, Tensor]") -> None:
    """A head of ours → a file as Whisper-AT has them. Raises ValueError for what that format cannot hold.

    The package runs tl_tr and tl_tr_512, named as released.py says and put into Whisper's cache folder; Whisper-AT's
    training code runs all nine. The context a head was trained in is lost: the package pads every window to 30 s.
    """
    import torch

    from whispertag.data.shards import write_atomically

    if reason := _unpublishable(description):
        raise ValueError(f"Whisper-AT's files cannot hold this head: {reason}")
    raw = io.BytesIO()
    torch.save({PREFIX + key: tensor.detach().cpu() for key, tensor in their_names(weights).items()}, raw)
    write_atomically(Path(path), raw.getvalue())


def our_names(theirs: dict[str, Any]) -> dict[str, Any]:
    """A dictionary by Whisper-AT's names → by TaggingHead's."""
    return _renamed(theirs, KEYS)


def their_names(ours: dict[str, Any]) -> dict[str, Any]:
    """A dictionary by TaggingHead's names → by Whisper-AT's."""
    return _renamed(ours, {new: old for old, new in KEYS.items()})


def _renamed(by_name: dict[str, Any], beginnings: dict[str, str]) -> dict[str, Any]:
    def name(key: str) -> str:
        old = next(old for old in beginnings if key.startswith(old))
        return beginnings[old] + key.removeprefix(old)

    return {name(key): value for key, value in by_name.items()}


def _read(source: str | os.PathLike[str], model: str | None, layer: str | None) -> "tuple[Description, TaggingHead]":
    import torch

    from whispertag.labels import ClassTable
    from whispertag.model.checkpoint import Description
    from whispertag.model.heads import TaggingHead
    from whispertag.model.weights import sha256

    path = published_file(source)
    theirs = read_tensors(path)
    options = _options(path, theirs, layer)
    width = theirs.get("down_layer.0.weight", theirs["mlp_layer.0.weight"]).numel()
    backbone, n_layers, wanted_width = whisper_of(path, model)
    if width != wanted_width:
        raise ValueError(
            f"{path}: this head listens to states of {width} channels, {backbone['name']} has {wanted_width}: "
            "pass the Whisper that it was trained on as model=<name or path> (--model)"
        )
    classes = ClassTable.audioset()
    with torch.device("meta"):
        head = TaggingHead(n_layers, width, len(classes), **options)
    wanted = {key: tuple(tensor.shape) for key, tensor in their_names(head.state_dict()).items()}
    found = {key: tuple(tensor.shape) for key, tensor in theirs.items()}
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise ValueError(
                f"{path}: {key} is {found.get(key, 'missing')}; in a head like this on {backbone['name']} "
                f"({n_layers} layers × {width} channels, {len(classes)} classes) it is {wanted.get(key, 'not there')}"
            )
    head.load_state_dict({key: tensor.float() for key, tensor in our_names(theirs).items()}, assign=True)
    description = Description(
        backbone=backbone | {"context": CONTEXT, "pool": POOL, "layers": list(range(n_layers))},
        head=options,
        classes={"names": list(classes.names), "mids": list(classes.mids)},
        task="multilabel",
        clip_seconds=CLIP_SECONDS,
        origin={"file": path.name, "sha256": sha256(path)},
    )
    return description, head


def _options(path: Path, theirs: "dict[str, Tensor]", layer: str | None) -> dict[str, Any]:
    """TaggingHead's arguments, from which tensors there are."""
    parts = {key.split(".")[0] for key in theirs}
    if "mlp_layer.0.weight" not in theirs:
        raise ValueError(f"{path}: not a whole head of Whisper-AT: it lacks mlp_layer.0.weight")
    told = [pool for part, pool in (("layer_tr", "attend"), ("layer_weight", "weighted")) if part in parts]
    if not told and layer not in ("mean", "last"):
        raise ValueError(
            f"{path}: its tensors do not tell whether it takes the mean over layers or the last one: "
            'pass layer="mean" or "last" (--layer)'
        )
    pools = ("attend" if "time_tr" in parts else "mean", told[0] if told else str(layer))
    known = {key.rstrip(".") for key in KEYS}
    if (kind := (*pools, "down_layer" in parts)) not in HEADS or not parts <= known:
        raise ValueError(f"{path}: no head of Whisper-AT consists of {', '.join(sorted(parts))}")
    dim = theirs["mlp_layer.0.weight"].numel() if "down_layer" in parts else None
    options = {"time": pools[0], "layer": pools[1], "first": HEADS[kind][1], "dim": dim}
    return options | ATTENTION_HEADS | {"standardize": False}


def _unpublishable(description: "Description") -> str | None:
    """Why Whisper-AT has no such heads, or None."""
    from whispertag.labels import ClassTable

    backbone, head = description.backbone, _with_defaults(description.head)
    n_layers, _ = layers_and_width(backbone["name"])
    if description.classes["names"] != list(ClassTable.audioset().names) or description.task != "multilabel":
        return f"its classes are not AudioSet's 527, but {len(description.classes['names'])} ({description.task})"
    if backbone["weights"] != "pretrained":
        return "its backbone has random weights"
    if backbone["layers"] != list(range(n_layers)):
        return f"it listens to layers {backbone['layers']}, not to all {n_layers}"
    if backbone["pool"] != POOL:
        return f"its steps are {backbone['pool']} positions long (pool), not {POOL}"
    if head["standardize"]:
        return "it standardises the states (train with head.standardize=false)"
    kind = (head["time"], head["layer"], head["dim"] is not None)
    name, first = HEADS.get(kind, (None, None))
    if name is None or (head["time"] == "attend" and head["first"] != first):
        return f"its pools are time={head['time']} layer={head['layer']} first={head['first']} dim={head['dim']}"
    for pool, heads in (("time", "time_heads"), ("layer", "layer_heads")):
        if head[pool] == "attend" and head[heads] != ATTENTION_HEADS[heads]:
            return f"its {heads} are {head[heads]}, not {ATTENTION_HEADS[heads]}"
    return None


def _with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    from inspect import signature

    from whispertag.model.heads import TaggingHead

    bound = signature(TaggingHead).bind_partial(**options)
    bound.apply_defaults()
    return bound.arguments


def add_commands(commands: Any) -> None:
    parser = commands.add_parser("import", help="a head published with Whisper-AT → head.safetensors")
    parser.add_argument("source", metavar="FILE", help=f"a .pth file, or {SCHEME}<model>[-low]")
    parser.add_argument("--model", help="its Whisper: name, checkpoint or folder (as the file's name says)")
    parser.add_argument("--layer", choices=("mean", "last"), help="layer pool, where the file does not tell")
    parser.add_argument("--to", type=Path, required=True, metavar="HEAD", help="the head.safetensors to write")
    parser.set_defaults(run=_import)
    release = commands.add_parser("release", help="head.safetensors → a .pth file as Whisper-AT reads it")
    release.add_argument("head", metavar="HEAD", help="head.safetensors of a run")
    release.add_argument("--to", type=Path, required=True, metavar="FILE", help="the .pth file to write")
    release.set_defaults(run=_release)


def _import(options: argparse.Namespace) -> None:
    from whispertag.model.checkpoint import save_head

    description, head = _read(options.source, options.model, options.layer)
    save_head(options.to, head, description)
    print(f"{options.to}: {_told(description)}; from {options.source}, sha256 {description.origin['sha256']}")


def _release(options: argparse.Namespace) -> None:
    from whispertag.model.checkpoint import read_head

    description, weights = read_head(options.head)
    write_published(options.to, description, weights)
    print(f"{options.to}: {_told(description)}")


def _told(description: "Description") -> str:
    head = _with_defaults(description.head)
    name, _ = HEADS[head["time"], head["layer"], head["dim"] is not None]
    return f"{name} on {description.backbone['name']}, {len(description.classes['names'])} classes"
