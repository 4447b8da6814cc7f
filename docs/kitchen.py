"""A kitchen that never was, for docs/tutorial.md: 300 clips of four sounds, a csv of them, an evening to listen to."""

import csv
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000  # samples a second
HOME = Path("kitchen")
rng = np.random.default_rng(0)


def hum(hz):
    return np.sin(2 * np.pi * np.cumsum(hz) / RATE)


def hiss(n, smooth=1):
    return np.convolve(rng.standard_normal(n + smooth - 1), np.ones(smooth) / np.sqrt(smooth), "valid")


def fridge(t):
    """The mains and its harmonics."""
    return sum(rng.uniform(0.2, 1) * hum(np.full(len(t), 50.0 * k)) for k in (1, 2, 3, 4, 6))


def kettle(t):
    """A whistle that rises out of hiss."""
    return hum(rng.uniform(1200, 2000) * (0.7 + 0.3 * np.minimum(1, t / 2))) + 0.3 * hiss(len(t))


def microwave(t):
    """Beeps, one a second."""
    return hum(np.full(len(t), rng.uniform(900, 2200))) * (t % 1 < 0.5)


def tap(t):
    """Water: hiss that wavers."""
    return hiss(len(t), 3) * (1 + 0.4 * np.sin(2 * np.pi * rng.uniform(3, 8) * t))


SOUNDS = {sound.__name__: sound for sound in (fridge, kettle, microwave, tap)}


def room(seconds):
    return 0.002 * hiss(seconds * RATE, 30)


def add(wave, name, start, seconds):
    t = np.arange(int(seconds * RATE)) / RATE
    sound = SOUNDS[name](t) * np.minimum(1, np.minimum(t, t[::-1]) / 0.05)
    first = int(start * RATE)
    wave[first : first + len(t)] += rng.uniform(0.03, 0.15) * sound / np.abs(sound).max()


def main():
    (HOME / "recordings").mkdir(parents=True)
    with open(HOME / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filename", "labels", "split"])
        for i in range(300):
            wave, names = room(10), sorted(rng.choice(list(SOUNDS), rng.integers(0, 3), replace=False))
            for name in names:
                seconds = rng.uniform(3, 8)
                add(wave, name, rng.uniform(0, 10 - seconds), seconds)
            soundfile.write(HOME / "recordings" / f"{i:03d}.wav", wave, RATE)
            table.writerow([f"{i:03d}.wav", ";".join(names), "train" if i % 5 else "val"])

    evening = room(30)
    add(evening, "kettle", 1, 6)
    voice, _ = soundfile.read("src/whispertag/assets/demo.flac")  # a voice, and an alarm behind it
    evening[10 * RATE : 20 * RATE] += 0.5 * voice
    add(evening, "microwave", 22, 4)
    soundfile.write(HOME / "evening.wav", evening, RATE)


if __name__ == "__main__":
    main()
