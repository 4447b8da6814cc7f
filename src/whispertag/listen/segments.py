"""A window's tokens → segments, cut where Whisper set time stamps."""

from dataclasses import dataclass
from typing import Any

from whispertag.audio import FRAMES_PER_POSITION, HOP_LENGTH, SAMPLE_RATE, SECONDS_PER_POSITION

Segment = dict[str, Any]  # openai-whisper's


@dataclass
class Cut:
    """The segments of a window.

    next_seek  the frame where the next window begins
    closed     its last segment ends with a time stamp: no speech came behind it
    """

    segments: list[Segment]
    seek: int
    n_frames: int
    next_seek: int
    closed: bool

    @property
    def begin(self) -> float:
        """Seconds."""
        return float(self.seek * HOP_LENGTH / SAMPLE_RATE)

    @property
    def duration(self) -> float:
        """Seconds of the recording that the window holds."""
        return self.n_frames * HOP_LENGTH / SAMPLE_RATE


def cut_segments(result: Any, tokenizer: Any, seek: int, n_frames: int) -> Cut:
    """What was decoded (whisper.DecodingResult) of `n_frames` from frame `seek` on."""
    first_stamp, tokens = tokenizer.timestamp_begin, result.tokens
    is_stamp = [token >= first_stamp for token in tokens]
    closed = is_stamp[-2:] == [False, True]
    cut = Cut([], seek, n_frames, seek + n_frames, closed)

    def add(piece: list[int], start: float, end: float) -> None:
        cut.segments.append(_segment(result, tokenizer, seek, piece, start, end))

    pairs = [i for i in range(1, len(tokens)) if is_stamp[i - 1] and is_stamp[i]]
    if pairs:  # an end and a beginning: there the text is cut
        ends = [*pairs, len(tokens)] if closed else pairs
        for piece in (tokens[i:j] for i, j in zip([0, *ends], ends)):
            positions = piece[0] - first_stamp, piece[-1] - first_stamp
            add(piece, *(cut.begin + p * SECONDS_PER_POSITION for p in positions))
        if not closed:  # what was begun last is heard again, whole
            cut.next_seek = seek + (tokens[ends[-1] - 1] - first_stamp) * FRAMES_PER_POSITION
    else:
        duration = cut.duration
        stamps = [token for token, stamp in zip(tokens, is_stamp) if stamp]
        if stamps and stamps[-1] != first_stamp:
            duration = (stamps[-1] - first_stamp) * SECONDS_PER_POSITION
        add(tokens, cut.begin, cut.begin + duration)
    return cut


def _segment(result: Any, tokenizer: Any, seek: int, tokens: list[int], start: float, end: float) -> Segment:
    return {
        "seek": seek,
        "start": start,
        "end": end,
        "text": tokenizer.decode([token for token in tokens if token < tokenizer.eot]),
        "tokens": tokens,
        "temperature": result.temperature,
        "avg_logprob": result.avg_logprob,
        "compression_ratio": result.compression_ratio,
        "no_speech_prob": result.no_speech_prob,
    }
