"""What a head of Whisper-AT's can be: the names of its tensors, the nine kinds there are, and what that leaves out."""

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from whispertag.model.checkpoint import Description

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


def head_options(path: Path, theirs: "dict[str, Tensor]", layer: str | None) -> dict[str, Any]:
    """TaggingHead's arguments, from which tensors there are."""
    parts = {key.split(".")[0] for key in theirs}
    if "mlp_layer.0.weight" not in theirs:
        raise ValueError(f"{path}: not a whole head of Whisper-AT: it lacks mlp_layer.0.weight")
    told = [pool for part, pool in (("layer_tr", "attend"), ("layer_weight", "weighted")) if part in parts]
    if not told and layer not in ("mean", "last"):
        raise ValueError(
            f"{path}: its tensors do not tell whether it takes the mean over layers or the last one: "
            'pass layer="mean" or "last" (whispertag import: --layer)'
        )
    pools = ("attend" if "time_tr" in parts else "mean", told[0] if told else str(layer))
    known = {key.rstrip(".") for key in KEYS}
    if (kind := (*pools, "down_layer" in parts)) not in HEADS or not parts <= known:
        raise ValueError(f"{path}: no head of Whisper-AT consists of {', '.join(sorted(parts))}")
    dim = theirs["mlp_layer.0.weight"].numel() if "down_layer" in parts else None
    options = {"time": pools[0], "layer": pools[1], "first": HEADS[kind][1], "dim": dim}
    return options | ATTENTION_HEADS | {"standardize": False}


def unpublishable(description: "Description") -> str | None:
    """Why Whisper-AT has no such heads, or None."""
    from whispertag.labels import ClassTable
    from whispertag.listen.exchange.whisper_at_files import layers_and_width

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
    if not kind_of(head):
        return f"its pools are time={head['time']} layer={head['layer']} first={head['first']} dim={head['dim']}"
    for pool, heads in (("time", "time_heads"), ("layer", "layer_heads")):
        if head[pool] == "attend" and head[heads] != ATTENTION_HEADS[heads]:
            return f"its {heads} are {head[heads]}, not {ATTENTION_HEADS[heads]}"
    return None


def kind_of(options: dict[str, Any]) -> str | None:
    """conf/head/'s name of a head with these arguments; None if Whisper-AT has none like it."""
    head = _with_defaults(options)
    name, first = HEADS.get((head["time"], head["layer"], head["dim"] is not None), (None, None))
    return name if head["time"] == "mean" or head["first"] == first else None


def _with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    from whispertag.model.heads import TaggingHead

    bound = signature(TaggingHead).bind_partial(**options)
    bound.apply_defaults()
    return bound.arguments
