"""Whisper's log-mel of a whole recording, of which any window can be had."""

import tempfile
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from whispertag.audio import HOP_LENGTH, N_FFT, SAMPLE_RATE
from whispertag.listen.recording import SPOOL_BYTES

SILENCE = -10.0  # log10 of the least power Whisper tells from none


class MelStream:
    """Log10 of mel power, as openai-whisper computes it of samples with silence after them, while the samples come."""

    def __init__(self, n_mels: int):
        from whisper.audio import mel_filters

        self.n_samples = 0
        self._filters_MF = mel_filters("cpu", n_mels)
        self._hann = torch.hann_window(N_FFT)
        self._waiting_S, self._begun = torch.zeros(0), False

    def add(self, wave_S: np.ndarray) -> Tensor:
        """log_MF of the frames that these samples complete; perhaps none."""
        self.n_samples += len(wave_S)
        self._waiting_S = torch.cat([self._waiting_S, torch.from_numpy(wave_S)])
        if not self._begun:
            if len(self._waiting_S) <= N_FFT // 2:
                return self._filters_MF.new_zeros(len(self._filters_MF), 0)
            self._begin()
        return self._frames()

    def end(self) -> Tensor:
        """log_MF of the last frames, and of a few more that reach into the silence."""
        self._waiting_S = F.pad(self._waiting_S, (0, N_FFT + HOP_LENGTH))
        if not self._begun:
            self._begin()
        return self._frames()

    def _begin(self) -> None:
        """The first frame is centred on the first sample."""
        self._waiting_S, self._begun = F.pad(self._waiting_S[None], (N_FFT // 2, 0), mode="reflect")[0], True

    def _frames(self) -> Tensor:
        if len(self._waiting_S) < N_FFT:
            return self._filters_MF.new_zeros(len(self._filters_MF), 0)
        stft_BF = torch.stft(self._waiting_S, N_FFT, HOP_LENGTH, window=self._hann, center=False, return_complex=True)
        self._waiting_S = self._waiting_S[stft_BF.shape[1] * HOP_LENGTH :]
        return (self._filters_MF @ stft_BF.abs() ** 2).clamp(min=1e-10).log10()


class MelTape:
    """The log-mel that openai-whisper computes of a recording with 30 s of silence after it.

    Whisper cuts off what is 8 decades below the loudest frame of the *whole* recording, so nothing can be had
    before all is read. What is kept is four bytes a band and frame, on disk for long recordings: memory does not grow.

    n_frames  of the recording itself, whole ones of 10 ms
    seconds   its length
    """

    def __init__(self, blocks: Iterable[np.ndarray], n_mels: int):
        self.n_mels = n_mels
        self._file = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 — closed when the recording is through
        self._kept = 0  # frames on the tape: a few more than n_frames, which reach into the silence
        self._peak = SILENCE
        stream = MelStream(n_mels)
        for block_S in blocks:
            self._write(stream.add(block_S))
        self._write(stream.end())
        self.n_frames, self.seconds = stream.n_samples // HOP_LENGTH, stream.n_samples / SAMPLE_RATE

    def _write(self, log_MF: Tensor) -> None:
        if log_MF.shape[1]:
            self._peak = max(self._peak, float(log_MF.max()))
            self._file.write(log_MF.T.contiguous().numpy().tobytes())
            self._kept += log_MF.shape[1]

    def window(self, first: int, n_frames: int) -> Tensor:
        """mel_MF of `n_frames` from frame `first` on; behind the recording's end comes silence."""
        row = 4 * self.n_mels
        self._file.seek(first * row)
        log_FM = np.frombuffer(self._file.read(max(0, min(n_frames, self._kept - first)) * row), np.float32)
        log_MF = torch.from_numpy(log_FM.reshape(-1, self.n_mels).T.copy())
        return scaled(log_MF, n_frames, self._peak)

    def close(self) -> None:
        self._file.close()


def scaled(log_MF: Tensor, n_frames: int, peak: float) -> Tensor:
    """Log10 of power → mel_MF as Whisper is given it, with silence behind it up to `n_frames`; peak: the loudest."""
    log_MF = F.pad(log_MF, (0, n_frames - log_MF.shape[1]), value=SILENCE)
    return (log_MF.clamp(min=peak - 8.0) + 4.0) / 4.0
