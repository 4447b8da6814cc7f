"""Words in flite's voices, each made of the recordings of one person (the program flite must be there)."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from whispertag.audio import read_wave
from whispertag.data.speech.program import run, spoken
from whispertag.data.speech.utterances import WORDS, Utterance, trimmed

PROGRAM = "flite"
VOICES = {"awb": 130, "kal16": 105, "slt": 170}  # and their pitch (Hz)
HELD_OUT_VOICES = {"rms": 95}  # kept for tests; has one pitch alone


def flite_words(
    folder: str | PathLike[str],
    n_manners: int,
    seed: int = 0,
    held_out_voices: bool = False,
    words: Sequence[str] = WORDS,
) -> list[Utterance]:
    """Each of `words` alone, in every voice and `n_manners` of speaking, slow or fast, high or low; made once, kept
    in `folder`. A manner counts as a speaker: `slt, 1.12 as long, 165 Hz`.
    """
    rng, requests = np.random.default_rng([seed, n_manners]), []
    for voice, home in (HELD_OUT_VOICES if held_out_voices else VOICES).items():
        for _ in range(n_manners):
            length, pitch = round(rng.uniform(0.8, 1.4), 2), round(home * rng.uniform(0.8, 1.3))
            manner = f"{voice}, {length} as long, {pitch} Hz"
            requests += [(word, manner, voice, length, pitch) for word in words]
    return spoken(folder, PROGRAM, requests, speak)


def speak(text: str, manner: str, voice: str, length: float, pitch: int) -> np.ndarray:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "spoken.wav"
        how = ("--setf", f"duration_stretch={length}", "--setf", f"int_f0_target_mean={pitch}")
        run(PROGRAM, "-voice", voice, *how, "-t", text, "-o", str(path))
        return trimmed(read_wave(path))
