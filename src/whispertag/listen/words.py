"""Words on the clock, and what they tell of text that nobody spoke."""

from typing import Any

from torch import Tensor

from whispertag.audio import FRAMES_PER_SECOND, HOP_LENGTH, SAMPLE_RATE, WINDOW_FRAMES
from whispertag.listen.segments import Cut, Segment
from whispertag.listen.speech import SpeechOptions

PUNCTUATION = "\"'“¿([{-\"'.。,，!！?？:：”)]}、"


class Aligner:
    """A Whisper that is given encoded windows where openai-whisper's alignment would encode them once more."""

    def __init__(self, model: Any):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, features_BPD: Tensor, tokens: Tensor) -> Tensor:
        return self._model.decoder(tokens, features_BPD)


def add_words(
    model: Any,
    tokenizer: Any,
    segments: list[Segment],
    features_PD: Tensor,
    n_frames: int,
    options: SpeechOptions,
    last_speech: float,
) -> None:
    """Give each segment its `words`, with start, end and probability; starts and ends of segments follow them."""
    from whisper.timing import add_word_timestamps

    add_word_timestamps(
        segments=segments,
        model=Aligner(model),
        tokenizer=tokenizer,
        mel=features_PD,
        num_frames=n_frames,
        prepend_punctuations=options.prepend_punctuations,
        append_punctuations=options.append_punctuations,
        last_speech_timestamp=last_speech,
    )


def is_anomalous(segment: Segment | None) -> bool:
    """Whether the segment's first words are so improbable, short or long that it may be made up."""
    if segment is None or not segment["words"]:
        return False
    words = [word for word in segment["words"] if word["word"] not in PUNCTUATION][:8]
    score = sum(_oddity(word) for word in words)
    return score >= 3 or score + 0.01 >= len(words)


def _oddity(word: dict[str, Any]) -> float:
    seconds = word["end"] - word["start"]
    return (
        (1.0 if word.get("probability", 0.0) < 0.15 else 0.0)
        + (15 * (0.133 - seconds) if seconds < 0.133 else 0.0)
        + (seconds - 2.0 if seconds > 2.0 else 0.0)
    )


def skip_made_up(cut: Cut, spoken_until: float | None, last_speech: float, silence: float, n_frames: int) -> bool:
    """Take text out that stands alone in silence, and set where the next window begins; False: forget the window.

    spoken_until, last_speech  where words end, in this window and before it: seconds
    silence                    how long a pause must be: seconds
    n_frames                   of the recording
    """
    window_end = float((cut.seek + WINDOW_FRAMES) * HOP_LENGTH / SAMPLE_RATE)
    if (
        not cut.closed
        and spoken_until is not None
        and cut.begin < spoken_until
        and window_end - spoken_until <= silence
    ):
        cut.next_seek = cut.seek + cut.n_frames
    first = _first_with_words(cut.segments)
    if first and is_anomalous(first) and (gap := first["start"] - cut.begin) > silence:
        cut.next_seek = cut.seek + round(gap * FRAMES_PER_SECOND)  # heard again without the silence before
        return False
    i = _first_made_up(cut, window_end, last_speech, silence)
    if i is not None:
        made_up = cut.segments[i]
        cut.next_seek = round(max(cut.begin + 1, made_up["start"]) * FRAMES_PER_SECOND)
        if n_frames * HOP_LENGTH / SAMPLE_RATE - made_up["end"] < silence:
            cut.next_seek = n_frames
        del cut.segments[i:]
    return True


def _first_with_words(segments: list[Segment]) -> Segment | None:
    return next((segment for segment in segments if segment["words"]), None)


def _first_made_up(cut: Cut, window_end: float, last_speech: float, silence: float) -> int | None:
    """Index of the first anomalous segment that has silence, or other anomalies, on both sides."""
    speech_end = last_speech
    for i, segment in enumerate(cut.segments):
        if not segment["words"]:
            continue
        if is_anomalous(segment):
            following = _first_with_words(cut.segments[i + 1 :])
            following_begin = following["words"][0]["start"] if following else cut.begin + cut.duration
            alone_before = (
                segment["start"] - speech_end > silence
                or segment["start"] < silence
                or segment["start"] - cut.begin < 2.0
            )
            alone_behind = (
                following_begin - segment["end"] > silence
                or is_anomalous(following)
                or window_end - segment["end"] < 2.0
            )
            if alone_before and alone_behind:
                return i
        speech_end = segment["end"]
    return None
