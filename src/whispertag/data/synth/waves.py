"""What the sounds of data/synth/sounds.py are made of: tones, noises, cadences, knocks and bells.

Suffixes: S samples (16 kHz). Times are in seconds, frequencies in Hz.
"""

from collections.abc import Sequence

import numpy as np
from scipy.fft import irfft
from scipy.ndimage import uniform_filter1d

Rng = np.random.Generator
Wave = np.ndarray
Numbers = Sequence[float] | np.ndarray
RATE = 16_000  # samples per second
FADE = 80  # samples; 5 ms, so that switching on and off does not click


def between(rng: Rng, low: float, high: float) -> float:
    """Log-uniform: an octave, or a halving of the rate, is as likely anywhere in the range."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def tone(n: int, hz: float | np.ndarray, partials: Numbers = (1.0,)) -> Wave:
    """Harmonics 1, 2, … of these amplitudes on a fixed or moving (hz_S) pitch, alias-free."""
    # Turns are counted in float64; only their fraction goes to the much faster float32 sine
    turns_S = hz * np.arange(n) / RATE if np.ndim(hz) == 0 else np.cumsum(hz) / RATE
    angle_S = (2 * np.pi * (turns_S - np.floor(turns_S))).astype(np.float32)
    audible = range(1, min(len(partials), int(RATE / 2 / np.max(hz))) + 1)
    return sum((np.float32(partials[k - 1]) * np.sin(k * angle_S) for k in audible), 0 * angle_S)


def timbre(rng: Rng, count: int = 6) -> Wave:
    """Amplitudes of `count` harmonics, from nearly pure (−15 dB/octave) to harsh (−6)."""
    return np.arange(1, count + 1) ** -rng.uniform(1.0, 2.5)


def noise(rng: Rng, n: int, slope: float = 0.0, low: float = 20.0, high: float = 8000.0) -> Wave:
    """Gaussian noise between two frequencies whose power falls as 1 / f^slope, RMS near 1."""
    first, last = int(np.ceil(low * n / RATE)), int(high * n / RATE) + 1
    gain = np.arange(first, last, dtype=np.float32) ** np.float32(-slope / 2)
    spectrum = np.zeros(n // 2 + 1, np.complex64)
    draws = rng.standard_normal(2 * (last - first), np.float32)
    spectrum[first:last] = gain * draws.view(np.complex64)
    return irfft(spectrum, n) * np.float32(n / 2 / np.linalg.norm(gain))


def gate(n: int, cadence: Numbers, fade: int = FADE) -> Wave:
    """0…1 envelope: seconds on, off, on, off, … from the start, over and over."""
    spans = np.tile(cadence, int(n / RATE / sum(cadence)) + 1)
    edges = np.round(np.cumsum([0.0, *spans]) * RATE).astype(int)
    open_S = np.repeat(np.arange(len(spans)) % 2 == 0, np.diff(edges))[:n]
    return uniform_filter1d(np.pad(open_S, (0, n - len(open_S))).astype(np.float32), fade)


def phase(n: int, period: float) -> Wave:
    """Where each sample stands in its period, 0 to below 1."""
    turns_S = np.arange(n) / (RATE * period)
    return turns_S - np.floor(turns_S)


def place(n: int, starts: Numbers, hits: Sequence[np.ndarray]) -> Wave:
    """Sum of the hits, taken in turn, at these times; what lies past the end is cut."""
    wave_S = np.zeros(n)
    for i, start in enumerate(starts):
        at, hit = int(start * RATE), hits[i % len(hits)]
        wave_S[at : at + len(hit)] += hit[: max(0, n - at)]
    return wave_S


def knock(rng: Rng, hz: float, decay: float) -> Wave:
    """A pitchless impact: noise in about an octave around hz that dies away with `decay`."""
    n = max(400, int(8 * decay * RATE))
    return noise(rng, n, 0.0, hz / 1.5, hz * 1.5) * np.exp(-np.arange(n) / (decay * RATE))


def bell(hz: float, decay: float) -> Wave:
    """A struck free bar: partials 1 : 2.756 : 5.404 (Euler–Bernoulli), the higher the shorter."""
    n = int(6 * decay * RATE)
    t = np.arange(n) / RATE
    strengths = zip((1.0, 2.756, 5.404), (1.0, 0.5, 0.25), strict=True)
    return sum((tone(n, r * hz, (a,)) * np.exp(-t * r / decay) for r, a in strengths), np.zeros(n))


def beats(rng: Rng, n: int, period: float, jitter: float = 0.0) -> Wave:
    """Times that fill n samples, `period` apart, each interval off by up to ±jitter of it."""
    count = int(n / RATE / period / (1 - jitter)) + 1
    gaps = period * (1 + jitter * rng.uniform(-1, 1, count))
    return np.cumsum(gaps) - gaps[0]
