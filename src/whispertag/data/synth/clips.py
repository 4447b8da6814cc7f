"""Clips whose sounds are AudioSet classes by the way they are made: the embedded data set."""

import numpy as np

from whispertag.data.synth.sounds import LEAST, SOUNDS
from whispertag.data.synth.waves import FADE, RATE, Wave, noise

CLASSES: tuple[str, ...] = tuple(SOUNDS)


def clip(seed: int, index: int, *, seconds: float = 10.0, max_sounds: int = 4) -> tuple[np.ndarray, list[str]]:
    """Clip number `index` of data set `seed`: wave_S (float32, |x| <= 1) and its class names.

    1…max_sounds different classes, all numbers and classes equally likely, each 0…9 dB below full
    and at least LEAST long where `seconds` allows, over a noise floor 35–55 dB down. A function
    of its arguments alone: the same bytes in any process and order.
    """
    if not seconds >= 0.1:
        raise ValueError(f"seconds must be at least 0.1, not {seconds}")
    if not 1 <= max_sounds <= len(CLASSES):
        raise ValueError(f"max_sounds must lie in 1…{len(CLASSES)}, not {max_sounds}")
    rng = np.random.default_rng([seed, index])
    total = round(seconds * RATE)
    count = int(rng.integers(1, max_sounds + 1))
    floor_db = rng.uniform(-55, -35)
    wave_S: Wave = 0.1 * 10 ** (floor_db / 20) * noise(rng, total, rng.uniform(0, 2))
    labels = [CLASSES[i] for i in np.sort(rng.choice(len(CLASSES), count, replace=False))]
    for name in labels:
        # Lengths in whole 0.1 s keep the transforms of the noises fast
        length = round(rng.uniform(min(LEAST[name], seconds), seconds), 1)
        n = min(total, max(1, round(length * RATE)))
        start = int(rng.integers(0, total - n + 1))
        gain = 10 ** (rng.uniform(-9, 0) / 20)
        ramp = np.minimum(1.0, np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)) / FADE)
        wave_S[start : start + n] += gain * ramp * SOUNDS[name](rng, n)
    peak = 10 ** (rng.uniform(-20, -0.1) / 20)
    return (wave_S * (peak / np.abs(wave_S).max())).astype(np.float32), labels
