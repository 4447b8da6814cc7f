"""Utterances that a program of text to speech says: said once, kept in a cache."""

import hashlib
import io
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from whispertag.data.speech.utterances import Utterance
from whispertag.files import write_atomically


def spoken(
    folder: str | PathLike[str], program: str, requests: Sequence[tuple[Any, ...]], speak: Callable[..., np.ndarray]
) -> list[Utterance]:
    """What speak(*request) gives for each request, which begins with the text and the voice."""
    version = run(program, "--version", check=False).decode().strip()  # flite says it and ends with 1
    digest = hashlib.sha256(json.dumps([requests, version]).encode()).hexdigest()[:12]
    path = Path(folder).expanduser() / f"{program.partition('-')[0]}-{digest}.npz"
    if not path.exists():
        from rich.progress import track

        with ThreadPoolExecutor(2) as pool:
            said = pool.map(lambda request: speak(*request), requests)
            waves = list(track(said, program, total=len(requests), transient=True))
        file = io.BytesIO()
        lengths = np.array([len(wave_S) for wave_S in waves])
        np.savez(file, lengths=lengths, waves=np.round(np.concatenate(waves) * 32767).astype(np.int16))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, file.getvalue())
    with np.load(path) as kept:
        flat_S, ends = kept["waves"].astype(np.float32) / 32767, np.cumsum(kept["lengths"])
    waves = np.split(flat_S, ends[:-1])
    return [Utterance(tuple(r[0].split()), wave_S, r[1]) for r, wave_S in zip(requests, waves, strict=True)]


def run(program: str, *arguments: str, check: bool = True) -> bytes:
    """Its standard output. FileNotFoundError: not installed."""
    if not (found := shutil.which(program)):
        raise FileNotFoundError(f"{program} is not installed (Debian package {program})")
    return subprocess.run([found, *arguments], capture_output=True, check=check).stdout
