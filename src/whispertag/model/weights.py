"""A Whisper encoder's weights: found, read without unpickling, or drawn at random and said to be so."""

import hashlib
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whispertag.audio import N_POSITIONS

# Encoder sizes: mel bands, width, attention heads, layers. Needed only where there is no checkpoint
# to read them from (weights=random). The nanos are this project's own.
SIZES = {
    "nano": (80, 128, 4, 4),
    "nano-clean": (80, 128, 4, 4),
    "tiny": (80, 384, 6, 4),
    "base": (80, 512, 8, 6),
    "small": (80, 768, 12, 12),
    "medium": (80, 1024, 16, 24),
    "large-v1": (80, 1280, 20, 32),
    "large-v2": (80, 1280, 20, 32),
    "large-v3": (128, 1280, 20, 32),
    "large": (128, 1280, 20, 32),
    "large-v3-turbo": (128, 1280, 20, 32),
    "turbo": (128, 1280, 20, 32),
}
TEXT_LAYERS = {"nano": 2, "nano-clean": 2, "large-v3-turbo": 4, "turbo": 4}  # if not the encoder's
ASSETS = files("whispertag") / "assets"
SHIPPED = ("nano", "nano-clean")  # trained by this project (experiments/nano), in assets/
RANDOM_SEED = 0  # of weights=random: the same everywhere, so that heads on them can be shared


class WeightsUnavailable(RuntimeError):
    """The checkpoint is neither here nor to be had; the message says what to do."""


def random_sizes(name: str) -> tuple[int, int, int, int]:
    """The sizes of a named model, for weights=random."""
    if (base := name.removesuffix(".en")) not in SIZES:
        raise ValueError(f"weights=random needs a known size: {', '.join(SIZES)}; not {name!r}")
    return SIZES[base]


def random_dimensions(name: str) -> dict[str, int]:
    """All of whisper.model.ModelDimensions of a named model."""
    n_mels, width, heads, layers = random_sizes(name)
    n_vocab = 51866 if n_mels == 128 else 51864 if name.endswith(".en") or name in SHIPPED else 51865
    return {
        "n_mels": n_mels,
        "n_audio_ctx": N_POSITIONS,
        "n_audio_state": width,
        "n_audio_head": heads,
        "n_audio_layer": layers,
        "n_vocab": n_vocab,
        "n_text_ctx": 128 if name in SHIPPED else 448,
        "n_text_state": width,
        "n_text_head": heads,
        "n_text_layer": TEXT_LAYERS.get(name, layers),
    }


def find_checkpoint(name: str, download_root: str | None = None) -> Path:
    """A model name or path → a checkpoint file on disk; OpenAI's are downloaded and checksummed by whisper."""
    if name in SHIPPED:
        return Path(str(ASSETS / f"{name}.pt"))
    import whisper

    if name not in whisper.available_models():
        if Path(name).expanduser().is_file():
            return Path(name).expanduser()
        raise WeightsUnavailable(
            f"model.name={name}: no such file, and no model of that name; known: "
            f"{', '.join([*SHIPPED, *whisper.available_models()])} (or pass weights=random)"
        )
    root = download_root or os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "whisper")
    try:
        return Path(whisper._download(whisper._MODELS[name], root, in_memory=False))
    except (OSError, RuntimeError) as error:  # no network, full disk | wrong checksum
        file = Path(root) / Path(whisper._MODELS[name]).name
        raise WeightsUnavailable(
            f"the weights of {name} are not at {file} and could not be downloaded ({error}): put OpenAI's "
            f"file there, or pass model.name=<path of a checkpoint>, or weights=random"
        ) from error


def read_encoder(path: Path) -> tuple[tuple[int, int, int, int], dict[str, Tensor]]:
    """An OpenAI checkpoint file → encoder sizes and the encoder's tensors; nothing is unpickled."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        dims, weights = checkpoint["dims"], checkpoint["model_state_dict"]
        sizes = tuple(dims[k] for k in ("n_mels", "n_audio_state", "n_audio_head", "n_audio_layer"))
    except OSError:
        raise
    except Exception as error:  # the unpickler answers garbage with whatever it stumbles over
        raise ValueError(
            f"{path}: not a Whisper checkpoint in OpenAI's format ({type(error).__name__}: {error})"
        ) from error
    prefix = "encoder."
    return sizes, {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def build_encoder(sizes: tuple[int, int, int, int], state: dict[str, Tensor] | None, depth: int) -> Any:
    """The first `depth` blocks of an encoder, in float32."""
    from whisper.model import AudioEncoder

    n_mels, width, n_heads, n_layers = sizes
    if state is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            encoder = AudioEncoder(n_mels, N_POSITIONS, width, n_heads, n_layers)
        # PyTorch's initial convolutions whisper beside the position embedding; so scaled, states are
        # made of sound (ESC-10, TL-TR, 5 folds: 82.5 % against 76.3 %).
        for conv in (encoder.conv1, encoder.conv2):
            for parameter in conv.parameters():
                parameter.data.mul_(8)
        del encoder.blocks[depth:]
    else:
        with torch.device("meta"):  # no time and memory for weights that are replaced at once
            encoder = AudioEncoder(n_mels, N_POSITIONS, width, n_heads, depth)
        wanted = encoder.state_dict().keys()
        if missing := wanted - state.keys():
            raise ValueError(f"the checkpoint lacks encoder.{min(missing)}")
        encoder.load_state_dict({k: state[k].float() for k in wanted}, assign=True)
    return encoder


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(encoder: Any) -> str:
    """Tells random weights of one torch version from those of another, without reading gigabytes."""
    return hashlib.sha256(encoder.conv1.weight.detach().numpy().tobytes()).hexdigest()[:16]
