"""WhisperBackbone: a frozen Whisper encoder that hands out the pooled states of chosen layers."""

import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whispertag.audio import (
    HOP_LENGTH,
    N_POSITIONS,
    SAMPLE_RATE,
    SAMPLES_PER_POSITION,
    WINDOW_SECONDS,
    log_mel,
    pad_seconds,
)
from whispertag.model.layers import layer_indices
from whispertag.model.macs import count_macs

log = logging.getLogger(__name__)

# Encoder sizes: mel bands, width, attention heads, layers. Needed only where there is no checkpoint
# to read them from (weights=random). "nano" is this project's own.
_SIZES = {
    "nano": (80, 128, 4, 4),
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
RANDOM_SEED = 0  # of weights=random: the same everywhere, so that heads on them can be shared


class WeightsUnavailable(RuntimeError):
    """The checkpoint is neither here nor to be had; the message says what to do."""


class WhisperBackbone(nn.Module):
    """Frozen encoder: mel_BMF or wave_BS → states_BLTD, float32.

    name      an OpenAI model name (tiny, base.en … large-v3, turbo), a path to a checkpoint in
              OpenAI's format, or "nano"
    weights   "pretrained", or "random" for seeded random weights (said in the log and the result)
    context   what the encoder sees: seconds, its position embeddings cut to them (10: the paper's
              training, 30: whole windows, padded, as Whisper transcribes) or "packed": as many
              clips side by side in one 30 s window as fit
    pool      positions of 20 ms averaged into one step (20: 0.4 s)
    layers    which blocks' outputs, in that order (see model/layers.py); blocks beyond the last one
              asked for are not even built
    dtype     of the encoder's matrix products; None: bfloat16 on CUDA, else float32
    download_root  where OpenAI's files are kept (None: Whisper's own cache folder)

    State l is the output of block l; the convolutions' embedding is left out and the final layer
    norm is not applied (Whisper-AT). Clips shorter than the context give only their own steps.
    """

    def __init__(
        self,
        name: str = "nano",
        weights: str = "pretrained",
        context: float | str = 10,
        pool: int = 20,
        layers: str | int | Sequence[int] = "all",
        dtype: str | None = None,
        download_root: str | None = None,
    ):
        super().__init__()
        self.packed = context == "packed"
        if not self.packed and not (isinstance(context, int | float) and 0 < context <= WINDOW_SECONDS):
            raise ValueError(f"context={context!r}: give seconds up to {WINDOW_SECONDS}, or 'packed'")
        if pool < 1:
            raise ValueError(f"pool={pool}: give the number of positions to average, 1 or more")
        if dtype not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype={dtype!r}: give float32, bfloat16, float16 or null")
        self.name, self.weights, self.context, self.pool = name, weights, context, pool
        self.seconds = WINDOW_SECONDS if self.packed else float(context)
        self.compute_dtype = getattr(torch, dtype) if dtype else None

        if weights == "random":
            sizes, state = self._random_sizes(name), None
            log.warning("backbone %s has RANDOM weights (weights=random, seed %d)", name, RANDOM_SEED)
        elif weights == "pretrained":
            path = find_checkpoint(name, download_root)
            sizes, state = read_encoder(path)
        else:
            raise ValueError(f"weights={weights!r}: give pretrained or random")
        self.n_mels, self.width, _, self.n_layers = sizes
        self.layers = layer_indices(layers, self.n_layers)

        self.encoder: Any = _build_encoder(sizes, state, depth=max(self.layers) + 1)
        self.fingerprint = sha256(path) if state else f"random:{_digest(self.encoder)}"
        self.requires_grad_(False)
        self.eval()

    def _random_sizes(self, name: str) -> tuple[int, int, int, int]:
        base = name.removesuffix(".en")
        if base not in _SIZES:
            raise ValueError(f"weights=random needs a known size: {', '.join(_SIZES)}; not {name!r}")
        return _SIZES[base]

    def train(self, mode: bool = True) -> "WhisperBackbone":
        """Stays in evaluation mode, whatever the module around it does."""
        return super().train(False)

    def n_steps(self, clip_seconds: float) -> int:
        """T of a clip of that length: whole steps only. Raises ValueError if there is not one."""
        if not (n_steps := round(clip_seconds * SAMPLE_RATE) // (SAMPLES_PER_POSITION * self.pool)):
            raise ValueError(f"clips of {clip_seconds:g} s are shorter than one step (pool={self.pool})")
        return n_steps

    def hear(self, wave_BS: Tensor) -> Tensor:
        """wave_BS (16 kHz, at most `context` seconds) → states_BLTD of the clips' own steps."""
        n_clips, seconds = len(wave_BS), wave_BS.shape[1] / SAMPLE_RATE
        n_steps, per_window = self.n_steps(seconds), self.clips_per_window(seconds)
        if not self.packed:
            # One by one on the CPU: as fast, and a clip's states are the same bits in any batch.
            parts = wave_BS.split(1) if wave_BS.device.type == "cpu" else [wave_BS]
            mels = (log_mel(pad_seconds(part_BS, self.seconds), self.n_mels) for part_BS in parts)
            return torch.cat([self(mel_BMF)[:, :, :n_steps] for mel_BMF in mels])
        # Whole steps side by side, so that no step holds two clips.
        stride = n_steps * self.pool * SAMPLES_PER_POSITION
        windows_BS = F.pad(wave_BS[:, :stride], (0, 0, 0, -n_clips % per_window)).reshape(-1, per_window * stride)
        states_BLTD = self(log_mel(pad_seconds(windows_BS, WINDOW_SECONDS), self.n_mels))
        states_BLTD = states_BLTD[:, :, : per_window * n_steps].unflatten(2, (per_window, n_steps))
        return states_BLTD.transpose(1, 2).flatten(0, 1)[:n_clips]

    def macs_per_clip(self, clip_seconds: float) -> float:
        """Multiply-adds of hearing one clip; packed windows share theirs."""
        n_frames = round(self.seconds * SAMPLE_RATE) // HOP_LENGTH
        return count_macs(self, (1, self.n_mels, n_frames)) / self.clips_per_window(clip_seconds)

    def clips_per_window(self, clip_seconds: float) -> int:
        """1, or how many are packed side by side. Raises ValueError for clips that fit no window."""
        if clip_seconds > self.seconds:
            raise ValueError(
                f"clips of {clip_seconds:g} s do not fit a context of {self.seconds:g} s: "
                "raise `context` or lower `data.clip_seconds`"
            )
        stride = self.n_steps(clip_seconds) * self.pool * SAMPLES_PER_POSITION
        return WINDOW_SECONDS * SAMPLE_RATE // stride if self.packed else 1

    @torch.no_grad()
    def forward(self, mel_BMF: Tensor) -> Tensor:
        """mel_BMF (F even, at most 3000) → states_BLTD, T = F / 2 / pool, whole steps only."""
        encoder, dtype = self.encoder, self._dtype_on(mel_BMF.device)
        # Autocast off: what the states are must not hang on the precision the head trains in.
        with _no_autocast(mel_BMF.device):
            x = F.gelu(encoder.conv1(mel_BMF.to(dtype)))
            x = F.gelu(encoder.conv2(x)).permute(0, 2, 1)
            x = (x + encoder.positional_embedding[: x.shape[1]]).to(dtype)
            states = {}
            for i, block in enumerate(encoder.blocks):
                x = block(x)
                if i in self.layers:
                    # Pooled here, so that the full-rate states of only one layer are ever held.
                    states[i] = F.avg_pool1d(x.transpose(1, 2).float(), self.pool).transpose(1, 2)
        return torch.stack([states[i] for i in self.layers], dim=1)

    def _dtype_on(self, device: torch.device) -> torch.dtype:
        """The matrix weights' dtype on this device; converts them at the first call."""
        dtype = self.compute_dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        if self.encoder.conv1.weight.dtype != dtype:
            for module in self.encoder.modules():
                if isinstance(module, nn.Linear | nn.Conv1d):  # Whisper's layer norms stay in float32
                    module.to(dtype)
        return dtype


def _no_autocast(device: torch.device):
    # The meta device, on which multiply-adds are counted, knows no autocast.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def find_checkpoint(name: str, download_root: str | None = None) -> Path:
    """A model name or path → a checkpoint file on disk, downloaded and checksummed by whisper."""
    import whisper

    if name not in whisper.available_models():
        if Path(name).expanduser().is_file():
            return Path(name).expanduser()
        raise WeightsUnavailable(
            f"model.name={name}: no such file, and no model of that name; known: "
            f"{', '.join(whisper.available_models())} (or pass weights=random)"
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


def _build_encoder(sizes: tuple[int, int, int, int], state: dict[str, Tensor] | None, depth: int) -> Any:
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


def _digest(encoder: Any) -> str:
    """Tells random weights of one torch version from those of another, without reading gigabytes."""
    return hashlib.sha256(encoder.conv1.weight.detach().numpy().tobytes()).hexdigest()[:16]
