"""Speech over noise at a signal-to-noise ratio that pauses and digital silence do not blur.

Levels are those of the active frames alone (in the spirit of ITU-T P.56): a clip that is half silence is as loud
as its sounding half.
"""

import numpy as np

FRAME = 320  # samples: 20 ms
ACTIVE_DB = 35.0  # a frame is active if it is within this of the loudest


def _active_frames(wave_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """→ mean power of each 20 ms frame, and which of them are active."""
    starts = np.arange(0, len(wave_S), FRAME)
    lengths = np.minimum(FRAME, len(wave_S) - starts)
    power_N = np.add.reduceat(np.square(wave_S, dtype=np.float64), starts) / lengths
    return power_N, (power_N > 0) & (power_N >= power_N.max() * 10 ** (-ACTIVE_DB / 10))


def active_level(wave_S: np.ndarray) -> float:
    """RMS over the active frames; 0.0 of digital silence."""
    power_N, active_N = _active_frames(wave_S)
    return float(np.sqrt(power_N[active_N].mean())) if active_N.any() else 0.0


def active_span(wave_S: np.ndarray) -> tuple[int, int]:
    """First and last sample (exclusive) of what is active; all of it if nothing is."""
    active = np.flatnonzero(_active_frames(wave_S)[1])
    return (int(active[0]) * FRAME, min(len(wave_S), int(active[-1] + 1) * FRAME)) if active.size else (0, len(wave_S))


def tile(wave_S: np.ndarray, n_samples: int) -> np.ndarray:
    """Over and over, or cut, to n_samples."""
    return np.resize(wave_S, n_samples)  # np.resize repeats


def mix(speech_S: np.ndarray, noise_S: np.ndarray, snr_db: float) -> np.ndarray:
    """Speech as it is plus noise, tiled or cut to its length, `snr_db` below it (both by active level).

    Raises ValueError if either is digital silence: there is no ratio then.
    """
    noise_S = tile(noise_S, len(speech_S))
    speech, noise = active_level(speech_S), active_level(noise_S)
    if speech == 0 or noise == 0:
        raise ValueError(f"{'speech' if speech == 0 else 'noise'} is digital silence: no SNR can be set")
    return (speech_S + noise_S * (speech / noise * 10 ** (-snr_db / 20))).astype(np.float32)
