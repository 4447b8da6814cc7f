"""Which heads Whisper-AT's package has, where it keeps their files, and which Whisper a file is for.

Of a model there are two, `<model>_ori.pth` (tl_tr) and `<model>_low.pth` (tl_tr_512); here they are called
whisper-at:<model>[-low]. Nothing is downloaded: the files have no published checksums to know them by.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SCHEME = "whisper-at:"
WITH_LOW = ("small.en", "small", "medium.en", "medium", "large-v1", "large-v2")
MODELS = ("tiny.en", "tiny", "base.en", "base", *WITH_LOW)
ALIASES = {"large": "large-v2"}  # as the package has it; openai-whisper's large has become large-v3


def is_published(source: str | os.PathLike[str]) -> bool:
    """Whether it is one of Whisper-AT's heads, by its name."""
    return str(source).startswith(SCHEME) or Path(source).suffix == ".pth"


def published_file(source: str | os.PathLike[str]) -> Path:
    """A path, or whisper-at:<model>[-low] → the file. Raises FileNotFoundError, and ValueError for unknown names."""
    from whispertag.model.weights import cache_folder

    if not str(source).startswith(SCHEME):
        if not Path(source).is_file():
            raise FileNotFoundError(f"{source}: no such file")
        return Path(source)
    asked = str(source).removeprefix(SCHEME)
    model = re.sub(r"[-_]low$", "", asked)
    released, low = ALIASES.get(model, model), model != asked
    if released not in (WITH_LOW if low else MODELS):
        known = [*MODELS, *ALIASES, *(f"{m}-low" for m in (*WITH_LOW, *ALIASES))]
        raise ValueError(f"{source}: Whisper-AT has no such head; it has {', '.join(SCHEME + m for m in known)}")
    path = cache_folder() / f"{released}_{'low' if low else 'ori'}.pth"
    if not path.is_file():
        call = f"whisper_at.load_model({released!r}{', at_low_compute=True' if low else ''})"
        raise FileNotFoundError(
            f"{source}: {path.name} is not in {path.parent}. Put it there, or let the package whisper-at do so "
            f"({call}); whispertag does not download it, as no checksum of it was published"
        )
    return path


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """A .pth file → its tensors, without the module. or at_model. before their names. Nothing is unpickled."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler answers garbage with whatever it stumbles over
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{path}: no file of plain tensors, or a damaged one; nothing in it was run ({why})"
        ) from error
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise ValueError(f"{path}: a head of Whisper-AT is a dictionary of tensors; this is not one")
    return {re.sub(r"^(module\.|at_model\.)+", "", str(key)): tensor for key, tensor in content.items()}


def whisper_of(path: Path, model: str | None) -> tuple[dict[str, Any], int, int]:
    """The Whisper a head listens to, as a Description has it, and its layers and width.

    OpenAI's need not be here: their sizes are known, and their checksums published.
    """
    import whisper

    from whispertag.model.weights import find_checkpoint, sha256

    if model is None:
        match = re.fullmatch(r"(.+)_(ori|low)\.pth", path.name)
        model = match[1] if match and match[1] in whisper.available_models() else None
    if model is None:
        raise ValueError(
            f"{path}: its name does not tell which Whisper it is for: pass model=<name or path> "
            "(import: --model; else --backbone)"
        )
    if model in ALIASES:
        raise ValueError(f"{path}: {model} is {ALIASES[model]} to Whisper-AT and a later one to OpenAI: say which")
    n_layers, width = layers_and_width(model)
    if model in whisper.available_models():
        fingerprint = whisper._MODELS[model].split("/")[-2]
    else:
        checkpoint = find_checkpoint(model)
        fingerprint = sha256(checkpoint)
        model = str(checkpoint.resolve()) if Path(model).expanduser() == checkpoint else model
    return {"name": model, "weights": "pretrained", "fingerprint": fingerprint}, n_layers, width


def layers_and_width(model: str) -> tuple[int, int]:
    """Layers and width of a Whisper."""
    from whispertag.model.weights import SIZES, find_checkpoint, read_encoder

    sizes = SIZES.get(model.removesuffix(".en")) or read_encoder(find_checkpoint(model))[0]
    return sizes[3], sizes[1]
