"""What the parts of a Whisper and every head cost: parameters, multiply-adds, measured seconds.

So that "tags for about 1 % more" is a table anyone can print, for any model, on the machine at hand.
"""

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from whispertag.audio import HOP_LENGTH, N_POSITIONS, POSITIONS_PER_SECOND, SAMPLE_RATE, WINDOW_SECONDS, log_mel
from whispertag.model.heads import TaggingHead
from whispertag.model.macs import count_macs, count_parameters
from whispertag.model.weights import load_whisper, random_dimensions
from whispertag.studies.tables import Table

SECONDS = 10  # of the clips heads are trained on
STEPS = 25  # a clip's pooled steps


def open_model(name: str, weights: str) -> Any:
    """A whole Whisper; weights=random builds one of the named sizes (cost does not hang on what weights are)."""
    from whisper.model import ModelDimensions, Whisper

    if weights not in ("pretrained", "random"):
        raise ValueError(f"weights={weights!r}: give pretrained or random")
    model = (
        load_whisper(name) if weights == "pretrained" else Whisper(ModelDimensions(**random_dimensions(name))).eval()
    )
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def seconds_of(work: Callable[[], Any], repeats: int) -> float:
    """Median of `repeats` calls after one that is not counted."""
    times = []
    for i in range(repeats + 1):
        _wait()
        begin = time.perf_counter()
        work()
        _wait()
        times += [time.perf_counter() - begin] if i else []
    return statistics.median(times)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.no_grad()
def run(
    folder: Path,
    backbone: str,
    weights: str,
    heads: dict[str, Callable[..., TaggingHead]],
    n_classes: int,
    tokens: int,
    repeats: int,
) -> Table:
    """cost.csv: one row a part. Shares are of the 10 s encoder (clip), and of transcribing a whole window: log-mel,
    30 s encoder, `tokens` tokens.
    """
    (folder / "cost.csv").unlink(missing_ok=True)
    whisper = open_model(backbone, weights)
    dims, device, encoder = whisper.dims, whisper.device, whisper.encoder
    wave_BS = torch.randn(1, WINDOW_SECONDS * SAMPLE_RATE, device=device)
    mel_BMF = log_mel(wave_BS, dims.n_mels)
    clip_BMF = mel_BMF[..., : SECONDS * SAMPLE_RATE // HOP_LENGTH]

    parts: list[tuple[str, int, float, float]] = []  # name, parameters, GMAC, seconds
    parts.append(("log-mel, 30 s", 0, 0.0, seconds_of(lambda: log_mel(wave_BS, dims.n_mels), repeats)))
    cut = cut_to(encoder, SECONDS)
    for label, part, given in ((f"encoder, {SECONDS} s", cut, clip_BMF), ("encoder, 30 s", encoder, mel_BMF)):
        gmacs = count_macs(part, tuple(given.shape)) / 1e9
        parts.append((label, count_parameters(encoder), gmacs, seconds_of(partial(part, given), repeats)))
    audio_BTD = encoder(mel_BMF)
    n_tokens = min(tokens, dims.n_text_ctx // 2)
    parts.append(
        (
            f"decoder, {n_tokens} tokens",
            count_parameters(whisper.decoder),
            decoder_macs(dims, n_tokens) / 1e9,
            seconds_of(lambda: _decode(whisper, audio_BTD, n_tokens), max(1, repeats // 3)),
        )
    )
    for label, make in heads.items():
        head = make(dims.n_audio_layer, dims.n_audio_state, n_classes, n_steps=STEPS).to(device).eval()
        states = torch.randn(1, dims.n_audio_layer, STEPS, dims.n_audio_state, device=device)
        gmacs = count_macs(head, tuple(states.shape)) / 1e9
        parts.append(
            (
                f"head {label}",
                count_parameters(head),
                gmacs,
                seconds_of(partial(head, states), repeats),
            )
        )

    clip_gmacs, clip_seconds = parts[1][2:]
    window = (parts[0], parts[2], parts[3])
    window_gmacs, window_seconds = sum(part[2] for part in window), sum(part[3] for part in window)
    columns = ("part", "parameters", "GMAC", "ms", "GMAC/clip %", "ms/clip %", "GMAC/window %", "ms/window %")
    table = Table(folder / "cost.csv", columns)
    for label, parameters, gmacs, seconds in parts:
        times = 3 if label.startswith("head") else 1  # a head hears a 10 s clip; three of them fill a window
        shares = [gmacs / clip_gmacs, seconds / clip_seconds]
        shares += [times * gmacs / window_gmacs, times * seconds / window_seconds]
        row = (label, f"{parameters:,}", f"{gmacs:.4g}", f"{1000 * seconds:.2f}")
        table.extend([dict(zip(columns, (*row, *(f"{100 * share:.3g}" for share in shares))))])
    table.show(f"{backbone}, {weights} weights, one at a time on {device}, {torch.get_num_threads()} threads")
    return table


def cut_to(encoder: Any, seconds: int) -> Any:
    """The same encoder, its positions cut to a shorter context."""
    cut = copy.copy(encoder)
    positions_TD = encoder.positional_embedding[: seconds * POSITIONS_PER_SECOND]
    cut._buffers = {**encoder._buffers, "positional_embedding": positions_TD}
    return cut


def decoder_macs(dims: Any, tokens: int) -> int:
    """Multiply-adds of writing `tokens` tokens one after another, keys and values kept."""
    width, layers = dims.n_text_state, dims.n_text_layer
    audio = 2 * N_POSITIONS * width * width  # keys and values of the audio, once
    per_token = 4 * width**2 + 2 * width**2 + 8 * width**2  # self-attention, cross-attention's q and out, MLP
    attention = 2 * width * (tokens * N_POSITIONS + tokens * (tokens + 1) // 2)
    return layers * (audio + tokens * per_token + attention) + tokens * width * dims.n_vocab


def _decode(model: Any, audio_BTD: torch.Tensor, tokens: int) -> None:
    cache, hooks = model.install_kv_cache_hooks()
    for _ in range(tokens):
        model.decoder(torch.zeros(1, 1, dtype=torch.long, device=model.device), audio_BTD, kv_cache=cache)
    for hook in hooks:
        hook.remove()
