"""The log-mel of a stream that goes on: the newest minute of it, and where its next window ends."""

import sys
from threading import Condition

import numpy as np
import torch
from torch import Tensor

from whispertag.audio import FRAMES_PER_SECOND, HOP_LENGTH, WINDOW_FRAMES, WINDOW_SECONDS
from whispertag.listen.tape import SILENCE, MelStream, scaled

HELD_FRAMES = 2 * WINDOW_FRAMES  # a window that is being heard, and what comes in meanwhile
PAUSE_FRAMES = 40
QUIET = 2.0  # decades of power below the loudest of a window so far: 20 dB


class LiveTape:
    """What MelTape is for a recording. One thread adds what comes, another waits for windows; each waits for the other.

    Whisper cuts off what is 8 decades below the loudest frame of the whole recording; here it is the loudest of all
    that came before the window's end. What is in a window hangs on nothing but the sound until then.

    wait  seconds: a window so long ends at the next pause, if one comes before it is full; 30: windows are full

    Raises ValueError for waits that are no part of a window.
    """

    def __init__(self, n_mels: int, wait: float = WINDOW_SECONDS):
        if not 1 <= wait <= WINDOW_SECONDS:
            raise ValueError(f"wait={wait:g}: give 1 to {WINDOW_SECONDS} s, which is what Whisper hears at a time")
        self._stream = MelStream(n_mels)
        self._least = round(wait * FRAMES_PER_SECOND)
        self._changed = Condition()
        self._first = 0  # the frame that _log_FM begins with
        self._log_FM = np.zeros((0, n_mels), np.float32)
        self._peaks_F = np.zeros(0, np.float32)  # the loudest until then, since the stream began
        self._peak = SILENCE
        self._ended = self._closed = False

    @property
    def n_frames(self) -> int:
        """Of the whole stream; as long as it goes on, more than there can be."""
        return self._stream.n_samples // HOP_LENGTH if self._ended else sys.maxsize

    @property
    def held_frames(self) -> int:
        return len(self._log_FM)

    def add(self, wave_S: np.ndarray) -> None:
        """What came next. Waits as long as there is no room."""
        log_MF = self._stream.add(wave_S)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.held_frames < HELD_FRAMES)
            self._append(log_MF)

    def end(self) -> None:
        """Nothing more comes."""
        log_MF = self._stream.end()
        with self._changed:
            self._ended = True
            self._append(log_MF)

    def close(self) -> None:
        """Nobody listens any more: who waits need not."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def next_window(self, seek: int) -> int:
        """Wait for a window that begins at frame `seek`, forget what is before → its frames; 0: there is none."""
        with self._changed:
            gone = min(seek - self._first, self.held_frames)
            self._first += gone
            self._log_FM, self._peaks_F = self._log_FM[gone:].copy(), self._peaks_F[gone:].copy()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or self._frames_from(seek) is not None)
            return 0 if self._closed else self._frames_from(seek) or 0

    def window(self, first: int, n_frames: int) -> Tensor:
        """As MelTape's."""
        with self._changed:
            begin = first - self._first
            log_MF = torch.from_numpy(self._log_FM[begin : begin + n_frames].T.copy())
            peak = float(self._peaks_F[: begin + n_frames].max(initial=SILENCE))
        return scaled(log_MF, n_frames, peak)

    def _append(self, log_MF: Tensor) -> None:
        if log_MF.shape[1] and not self._closed:
            log_FM = log_MF.T.numpy()
            peaks_F = np.maximum(np.maximum.accumulate(log_FM.max(axis=1)), self._peak)
            self._peak = float(peaks_F[-1])
            self._log_FM = np.concatenate([self._log_FM, log_FM])
            self._peaks_F = np.concatenate([self._peaks_F, peaks_F])
        self._changed.notify_all()

    def _frames_from(self, seek: int) -> int | None:
        """Length of the window that begins at `seek`; None if more must come before it is known."""
        begin = seek - self._first
        n_there = max(0, min(self.held_frames - begin, self.n_frames - seek, WINDOW_FRAMES))
        if self._least < n_there:
            levels_F = self._log_FM[begin : begin + n_there].max(axis=1)
            if pause := first_pause(levels_F, self._least):
                return pause
        return n_there if self._ended or n_there == WINDOW_FRAMES else None


def first_pause(levels_F: np.ndarray, least: int) -> int | None:
    """The first frame, `least` or later, before which it was quiet for PAUSE_FRAMES; levels are log10 of power.

    Quiet is what is 20 dB below the loudest so far: where there is a noise as loud as that, no pause is to be heard.
    """
    quiet_F = levels_F < np.maximum.accumulate(levels_F) - QUIET
    since = max(0, least - PAUSE_FRAMES)
    if len(levels_F) - since < PAUSE_FRAMES:
        return None
    pauses = np.lib.stride_tricks.sliding_window_view(quiet_F[since:], PAUSE_FRAMES).all(axis=1)
    return since + int(pauses.argmax()) + PAUSE_FRAMES if pauses.any() else None
