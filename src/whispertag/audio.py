"""Bytes → wave → log-mel: what Whisper hears, computed the way Whisper was trained.

Shape letters, used as suffixes in the whole package:
B clips, S samples, M mel bands, F mel frames, L layers, T pooled steps, D width, C classes.
"""

import io
from os import PathLike
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

SAMPLE_RATE = 16_000  # samples per second
N_FFT = 400  # samples: 25 ms
HOP_LENGTH = 160  # samples per mel frame: 10 ms
SAMPLES_PER_POSITION = 2 * HOP_LENGTH  # the second convolution halves the frames: 20 ms
POSITIONS_PER_SECOND = SAMPLE_RATE // SAMPLES_PER_POSITION  # 50
WINDOW_SECONDS = 30  # what Whisper's encoder takes at most
N_POSITIONS = WINDOW_SECONDS * POSITIONS_PER_SECOND  # 1500

AUDIO_EXTENSIONS = ("flac", "wav", "ogg", "opus", "mp3", "m4a")


class AudioError(ValueError):
    """A clip that cannot be used; the message says why, without its name."""


def read_wave(source: bytes | str | PathLike[str]) -> np.ndarray:
    """Decode one recording of any common format, rate and channel count → wave_S, float32 16 kHz mono.

    Raises AudioError if it cannot be decoded, is empty or holds values that are not finite.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data:
        raise AudioError("the file is empty")
    wave_SK, rate = _decode(data)
    if wave_SK.shape[0] == 0:
        raise AudioError("no samples")
    wave_S = wave_SK.mean(axis=1)
    # Before resampling, which would smear one NaN over its neighbours and hide an overflow.
    if not np.isfinite(wave_S).all():
        raise AudioError("samples that are NaN or infinite")
    if rate != SAMPLE_RATE:
        import soxr

        wave_S = soxr.resample(wave_S, rate, SAMPLE_RATE)
    if wave_S.size == 0:
        raise AudioError("no samples are left at 16 kHz")
    return np.ascontiguousarray(wave_S, dtype=np.float32)


def _decode(data: bytes) -> tuple[np.ndarray, int]:
    """→ (samples × channels float32, rate). soundfile first: it is the faster one."""
    import soundfile

    try:
        return soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as by_soundfile:
        try:
            return _decode_with_av(data)
        except Exception as by_av:  # PyAV raises a class of its own for every FFmpeg error code
            raise AudioError(f"cannot be decoded ({by_soundfile}; {by_av})") from by_av


def _decode_with_av(data: bytes) -> tuple[np.ndarray, int]:
    """AAC in m4a and the rarer codecs, through FFmpeg's libraries (no ffmpeg program needed)."""
    import av

    with av.open(io.BytesIO(data), "r") as container:
        if not container.streams.audio:
            raise AudioError("no audio stream")
        planar = av.AudioResampler(format="fltp")
        rate, parts = 0, []
        for frame in container.decode(audio=0):
            rate = frame.sample_rate
            parts += [part.to_ndarray() for part in planar.resample(frame)]
        parts += [part.to_ndarray() for part in planar.resample(None)] if parts else []
    if not parts:
        raise AudioError("no audio frames")
    return np.concatenate(parts, axis=1).T, rate


def fit_length(wave_S: np.ndarray, n_samples: int) -> np.ndarray:
    """Cut at, or pad with silence to, `n_samples`."""
    return np.pad(wave_S[:n_samples], (0, max(0, n_samples - wave_S.size)))


def log_mel(wave_BS: torch.Tensor, n_mels: int) -> torch.Tensor:
    """wave_BS → Whisper's log-mel_BMF with F = S / 160, on the device of the waves.

    As openai-whisper, but the maximum that sets the 8-decade floor is taken per clip, not over
    whatever else happens to be in the batch.
    """
    from whisper.audio import mel_filters

    wave_BS = wave_BS.float()
    window = torch.hann_window(N_FFT, device=wave_BS.device)
    stft_BFF = torch.stft(wave_BS, N_FFT, HOP_LENGTH, window=window, return_complex=True)
    power_BFF = stft_BFF[..., :-1].abs() ** 2
    mel_BMF = mel_filters(wave_BS.device, n_mels) @ power_BFF
    log_BMF = mel_BMF.clamp(min=1e-10).log10()
    log_BMF = torch.maximum(log_BMF, log_BMF.amax(dim=(-2, -1), keepdim=True) - 8.0)
    return (log_BMF + 4.0) / 4.0


def floor_of(mel_BMF: torch.Tensor) -> torch.Tensor:
    """level_B: what silence beside each clip is in its log-mel, 8 decades below the loudest."""
    return mel_BMF.amax(dim=(1, 2)) - 8.0 / 4.0


def pad_seconds(wave_BS: torch.Tensor, seconds: float) -> torch.Tensor:
    """Pad waves of at most `seconds` with silence to `seconds`."""
    return F.pad(wave_BS, (0, round(seconds * SAMPLE_RATE) - wave_BS.shape[-1]))
