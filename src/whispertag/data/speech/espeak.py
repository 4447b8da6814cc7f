"""Utterances in espeak-ng's voices (the program espeak-ng must be there): spoken once, kept in a cache."""

import hashlib
import io
import json
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path

import numpy as np

from whispertag.audio import read_wave
from whispertag.data.speech.utterances import WORDS, Utterance, some_words, trimmed
from whispertag.files import write_atomically

ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-029")
Request = tuple[str, str, int, int, int]  # text, voice, words a minute, pitch, gap between words (10 ms)
HELD_OUT_EVERY = 8  # every 8th voice variant is kept for tests


def voice_variants(held_out: bool) -> list[str]:
    """espeak-ng's voice variants, those for training or those kept for tests."""
    listing = _espeak("--voices=variant").decode().splitlines()[1:]
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
    return _spoken(folder, requests)


def espeak_words(
    folder: str | PathLike[str], n_voices: int, seed: int = 0, words: Sequence[str] = WORDS
) -> list[Utterance]:
    """Each of `words` alone, in `n_voices` of the training's voices × accents (all there are, if fewer)."""
    rng = np.random.default_rng([seed, n_voices])
    voices = [f"{accent}+{variant}" for accent in ACCENTS for variant in voice_variants(held_out=False)]
    requests = list[Request]()
    for i in rng.permutation(len(voices))[:n_voices]:
        speed, pitch = int(rng.integers(100, 220)), int(rng.integers(15, 86))
        for word in words:
            requests.append((word, voices[i], speed + int(rng.integers(-20, 21)), pitch + int(rng.integers(-5, 6)), 0))
    return _spoken(folder, requests)


def _spoken(folder: str | PathLike[str], requests: Sequence[Request]) -> list[Utterance]:
    version = _espeak("--version").decode().strip()
    digest = hashlib.sha256(json.dumps([requests, version]).encode()).hexdigest()[:12]
    path = Path(folder).expanduser() / f"espeak-{digest}.npz"
    if not path.exists():
        from rich.progress import track

        with ThreadPoolExecutor(2) as pool:
            spoken = pool.map(lambda request: speak(*request), requests)
            waves = list(track(spoken, "espeak-ng", total=len(requests), transient=True))
        file = io.BytesIO()
        lengths = np.array([len(wave_S) for wave_S in waves])
        np.savez(file, lengths=lengths, waves=np.round(np.concatenate(waves) * 32767).astype(np.int16))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, file.getvalue())
    with np.load(path) as kept:
        flat_S, ends = kept["waves"].astype(np.float32) / 32767, np.cumsum(kept["lengths"])
    waves = np.split(flat_S, ends[:-1])
    return [Utterance(tuple(r[0].split()), wave_S, r[1]) for r, wave_S in zip(requests, waves, strict=True)]


def speak(text: str, voice: str, speed: int, pitch: int, gap: int) -> np.ndarray:
    options = ["-v", voice, "-s", str(speed), "-p", str(pitch), "-g", str(gap)]
    return trimmed(read_wave(_espeak(*options, "--stdout", text)))


def _espeak(*arguments: str) -> bytes:
    if not (program := shutil.which("espeak-ng")):
        raise FileNotFoundError("espeak-ng is not installed (Debian package espeak-ng)")
    return subprocess.run([program, *arguments], capture_output=True, check=True).stdout
