"""The noises nano is trained and tested with."""

from concurrent.futures import ThreadPoolExecutor
from os import PathLike

import numpy as np

from whispertag.data import synth
from whispertag.data.mixing import active_level
from whispertag.data.sources import read_esc50

TEST_FOLD = 5


def noises_of(root: str | PathLike[str], test: bool) -> dict[str, np.ndarray]:
    """Recordings in ESC-50's layout, file name → wave_S: those of folds 1–4, or of the test fold."""
    clips, _ = read_esc50(root)
    clips = [clip for clip in clips if (clip.split == f"fold{TEST_FOLD}") == test]
    with ThreadPoolExecutor(2) as pool:
        waves = list(pool.map(lambda clip: clip.read()[0], clips))
    return {clip.info["source"]: wave_S for clip, wave_S in zip(clips, waves, strict=True) if active_level(wave_S) > 0}


def synthetic_noises(n: int, seed: int) -> list[np.ndarray]:
    return [synth.clip(seed, i, seconds=5.0)[0] for i in range(n)]
