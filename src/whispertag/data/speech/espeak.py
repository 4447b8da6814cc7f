"""Utterances in espeak-ng's voices (the program espeak-ng must be there): spoken once, kept in a cache."""

from collections.abc import Sequence
from os import PathLike

import numpy as np

from whispertag.audio import read_wave
from whispertag.data.speech.program import run, spoken
from whispertag.data.speech.utterances import WORDS, Utterance, some_words, trimmed

PROGRAM = "espeak-ng"
ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-029")
Request = tuple[str, str, int, int, int]  # text, voice, words a minute, pitch, gap between words (10 ms)
HELD_OUT_EVERY = 8  # every 8th voice variant is kept for tests


def voice_variants(held_out: bool) -> list[str]:
    """espeak-ng's voice variants, those for training or those kept for tests."""
    listing = run(PROGRAM, "--voices=variant").decode().splitlines()[1:]
    names = sorted({line.split("!v/")[1].split()[0] for line in listing if "!v/" in line})
    return [name for i, name in enumerate(names) if (i % HELD_OUT_EVERY == 3) == held_out]


def espeak_utterances(
    folder: str | PathLike[str], n: int, seed: int = 0, held_out_voices: bool = False, words: Sequence[str] = WORDS
) -> list[Utterance]:
    """`n` utterances of 1–6 words in espeak-ng's voices × accents; made once, kept in `folder`.

    Half of them are digits alone, three in ten commands alone, as far as `words` has both.
    """
    rng = np.random.default_rng([seed, n])
    variants = voice_variants(held_out_voices)
    requests = list[Request]()
    for _ in range(n):
        text = " ".join(rng.choice(some_words(rng, words), int(rng.integers(1, 7))))
        voice = f"{rng.choice(ACCENTS)}+{rng.choice(variants)}"
        speed, pitch, gap = (int(rng.integers(*span)) for span in ((100, 220), (10, 91), (0, 26)))
        requests.append((text, voice, speed, pitch, gap))
    return spoken(folder, PROGRAM, requests, speak)


def speak(text: str, voice: str, speed: int, pitch: int, gap: int) -> np.ndarray:
    options = ["-v", voice, "-s", str(speed), "-p", str(pitch), "-g", str(gap)]
    return trimmed(read_wave(run(PROGRAM, *options, "--stdout", text)))
