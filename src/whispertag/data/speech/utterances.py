"""Spoken words with their text: recorded digits (Free Spoken Digit Dataset), LibriSpeech, own recordings, espeak-ng.

Waves are float32, 16 kHz, trimmed to the speech and set to one active level.
"""

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from whispertag.audio import SAMPLE_RATE, read_wave
from whispertag.data.speech.mixing import active_level, active_span

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COMMANDS = (
    *("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "back", "next", "open"),
    *("close", "start", "play", "pause", "home", "light", "door", "music", "red", "green", "blue", "call", "help"),
)
WORDS = DIGITS + COMMANDS
LEVEL = 0.05  # RMS of the active frames of every utterance
TEST_TAKES = 5  # takes 0–4 of every digit and speaker are kept for tests


@dataclass(frozen=True)
class Utterance:
    """A few words in one go: wave_S and who says them."""

    words: tuple[str, ...]
    wave_S: np.ndarray
    speaker: str
    take: int = 0

    @property
    def seconds(self) -> float:
        return len(self.wave_S) / SAMPLE_RATE


def read_digits(root: str | PathLike[str]) -> list[Utterance]:
    """The Free Spoken Digit Dataset: `recordings/<digit>_<speaker>_<take>.wav`, one digit each."""
    files = sorted((Path(root).expanduser() / "recordings").glob("*.wav"))
    if not files:
        raise FileNotFoundError(f"{root}: no recordings/<digit>_<speaker>_<take>.wav in it")
    return [_digit(path) for path in files]


def _digit(path: Path) -> Utterance:
    parts = path.stem.split("_")
    if len(parts) != 3 or not parts[0].isdecimal() or not parts[2].isdecimal() or int(parts[0]) > 9:
        raise ValueError(f"{path}: not named <digit>_<speaker>_<take>.wav")
    return Utterance((DIGITS[int(parts[0])],), trimmed(read_wave(path)), parts[1], int(parts[2]))


def read_librispeech(root: str | PathLike[str]) -> list[Utterance]:
    """LibriSpeech's layout: `<speaker>/<chapter>/*.trans.txt` (`<id> <TEXT>` a line) with `<id>.flac` beside it."""
    tables = sorted(Path(root).expanduser().rglob("*.trans.txt"))
    if not tables:
        raise FileNotFoundError(f"{root}: no *.trans.txt in it; LibriSpeech's layout has one a chapter")
    utterances = []
    for table in tables:
        for line in table.read_text().splitlines():
            key, _, text = line.partition(" ")
            wave_S = trimmed(read_wave(table.with_name(f"{key}.flac")))
            utterances.append(Utterance(tuple(text.split()), wave_S, key.split("-")[0]))
    return utterances


def read_transcripts(table: str | PathLike[str]) -> list[Utterance]:
    """A csv of `filename, text[, speaker]`, the files relative to it; any format of audio, any language."""
    path = Path(table).expanduser()
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, restval=""))
    if not rows or not {"filename", "text"} <= rows[0].keys():
        raise ValueError(f"{path}: needs columns filename and text, and at least one row")
    return [
        Utterance(tuple(row["text"].split()), trimmed(read_wave(path.parent / row["filename"])), row.get("speaker", ""))
        for row in rows
    ]


def read_speech(
    kind: str, path: str | PathLike[str] | None = None, cache: str | PathLike[str] = "."
) -> list[Utterance]:
    """Speech with its text, for tests and studies.

    kind  digits: the Free Spoken Digit Dataset's recordings kept for tests | librispeech | table: a csv |
          espeak: 300 utterances in the voices kept for tests, made now (no path)
    """
    if kind == "espeak":
        from whispertag.data.speech.espeak import espeak_utterances

        return espeak_utterances(cache, 300, seed=1, held_out_voices=True)
    if path is None:
        raise ValueError(f"speech.kind={kind} needs speech.path")
    if kind == "digits":
        return split_takes(read_digits(path))[1]
    if kind == "librispeech":
        return read_librispeech(path)
    if kind == "table":
        return read_transcripts(path)
    raise ValueError(f"speech.kind={kind!r}: give digits, librispeech, table or espeak")


def split_takes(recorded: Sequence[Utterance]) -> tuple[list[Utterance], list[Utterance]]:
    """→ recordings for training, recordings for tests: takes 0–4, as in the data set's own split."""
    return [u for u in recorded if u.take >= TEST_TAKES], [u for u in recorded if u.take < TEST_TAKES]


def some_words(rng: np.random.Generator, words: Sequence[str]) -> list[str]:
    """Half of the time the digits of `words`, three times in ten the others, else all; all too where there are none."""
    kind = rng.random()
    digits, others = [w for w in words if w in DIGITS], [w for w in words if w not in DIGITS]
    return (digits if kind < 0.5 else others if kind < 0.8 else list(words)) or list(words)


def by_speaker(utterances: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    groups: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        groups[utterance.speaker].append(utterance)
    return dict(groups)


def join(parts: Sequence[Utterance], gaps: Sequence[float]) -> Utterance:
    """One utterance out of several, `gaps` seconds of silence between them."""
    pieces = [parts[0].wave_S]
    for part, gap in zip(parts[1:], gaps, strict=True):
        pieces += [np.zeros(round(gap * SAMPLE_RATE), np.float32), part.wave_S]
    return Utterance(tuple(w for part in parts for w in part.words), np.concatenate(pieces), parts[0].speaker)


def strings(
    recorded: Sequence[Utterance],
    n: int,
    seed: int,
    length: tuple[int, int] = (3, 7),
    gap: tuple[float, float] = (0.05, 0.4),
) -> list[Utterance]:
    """n strings of `length` recordings, each by one speaker; speakers and recordings are used about equally often."""
    rng = np.random.default_rng([seed, n])
    voices = list(by_speaker(recorded).values())
    decks: list[list[Utterance]] = [[] for _ in voices]
    made = []
    for i in range(n):
        deck, voice = decks[i % len(voices)], voices[i % len(voices)]
        count = int(rng.integers(length[0], length[1] + 1))
        while len(deck) < count:
            deck += [voice[j] for j in rng.permutation(len(voice))]
        parts = [deck.pop(0) for _ in range(count)]
        made.append(join(parts, list(rng.uniform(*gap, count - 1))))
    return made


def talk(rng: np.random.Generator, utterances: Sequence[Utterance], n_samples: int) -> np.ndarray:
    """wave_S: one speaker goes on talking for n_samples."""
    speaker = utterances[int(rng.integers(len(utterances)))].speaker
    voice = [u for u in utterances if u.speaker == speaker]
    pieces, length = [], 0
    while length < n_samples:
        pieces += [
            voice[rng.integers(len(voice))].wave_S,
            np.zeros(round(rng.uniform(0.05, 0.4) * SAMPLE_RATE), np.float32),
        ]
        length += len(pieces[-2]) + len(pieces[-1])
    return np.concatenate(pieces)[:n_samples]


def trimmed(wave_S: np.ndarray) -> np.ndarray:
    """Cut to the active span, at LEVEL."""
    first, last = active_span(wave_S)
    wave_S = wave_S[first:last]
    return (wave_S * (LEVEL / max(active_level(wave_S), 1e-9))).clip(-1, 1).astype(np.float32)
