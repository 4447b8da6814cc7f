"""Heads published with Whisper-AT (.pth) ↔ ours (head.safetensors).

A published head is a dictionary of tensors; the pools follow from which there are, the Whisper from the file's name.
"""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from whispertag.listen.exchange.whisper_at_files import published_file, read_tensors, whisper_of
from whispertag.listen.exchange.whisper_at_format import (
    CLIP_SECONDS,
    CONTEXT,
    POOL,
    head_options,
    our_names,
    their_names,
    unpublishable,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from whispertag.model.checkpoint import Description, SoundTagger
    from whispertag.model.heads import TaggingHead

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
    description, head = published_head(source, model, layer)
    return description, head.state_dict()


def load_published(
    source: str | os.PathLike[str],
    model: str | None = None,
    layer: str | None = None,
    device: "str | torch.device" = "cpu",
) -> "SoundTagger":
    """A published head with its Whisper, as load_tagger gives one of ours. Arguments as for read_published."""
    from whispertag.model.checkpoint import build_tagger

    return build_tagger(*read_published(source, model, layer), source, device=device)


def write_published(path: str | os.PathLike[str], description: "Description", weights: "dict[str, Tensor]") -> None:
    """A head of ours → a file as Whisper-AT has them. Raises ValueError for what that format cannot hold.

    The package runs tl_tr and tl_tr_512, named as whisper_at_files.py says and put into Whisper's cache folder;
    Whisper-AT's training code runs all nine. The context a head was trained in is lost: the package pads every window
    to 30 s.
    """
    import torch

    from whispertag.files import write_atomically

    if reason := unpublishable(description):
        raise ValueError(f"Whisper-AT's files cannot hold this head: {reason}")
    raw = io.BytesIO()
    torch.save({PREFIX + key: tensor.detach().cpu() for key, tensor in their_names(weights).items()}, raw)
    write_atomically(Path(path), raw.getvalue())


def published_head(
    source: str | os.PathLike[str], model: str | None = None, layer: str | None = None
) -> "tuple[Description, TaggingHead]":
    """As read_published, with the weights in a head."""
    import torch

    from whispertag.labels import ClassTable
    from whispertag.model.checkpoint import Description
    from whispertag.model.heads import TaggingHead
    from whispertag.model.weights import sha256

    path = published_file(source)
    theirs = read_tensors(path)
    options = head_options(path, theirs, layer)
    width = theirs.get("down_layer.0.weight", theirs["mlp_layer.0.weight"]).numel()
    backbone, n_layers, wanted_width = whisper_of(path, model)
    if width != wanted_width:
        raise ValueError(
            f"{path}: this head listens to states of {width} channels, {backbone['name']} has {wanted_width}: "
            "pass the Whisper that it was trained on as model=<name or path> (import: --model; else --backbone)"
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
