"""Recorded noises, split the same way for all that is trained or tested with them."""

from concurrent.futures import ThreadPoolExecutor
from os import PathLike

import numpy as np

from whispertag.data.sources.folders import Clip, read_esc50
from whispertag.data.speech.mixing import active_level

TEST_FOLD = 5  # nano has heard the others


def read_noises(root: str | PathLike[str], test: bool) -> list[tuple[Clip, np.ndarray]]:
    """Recordings in ESC-50's layout that are not digital silence, with wave_S: of the test fold, or of the others."""
    clips = [clip for clip in read_esc50(root)[0] if (clip.split == f"fold{TEST_FOLD}") == test]
    with ThreadPoolExecutor(2) as pool:
        waves = list(pool.map(lambda clip: clip.read()[0], clips))
    return [(clip, wave_S) for clip, wave_S in zip(clips, waves, strict=True) if active_level(wave_S) > 0]
