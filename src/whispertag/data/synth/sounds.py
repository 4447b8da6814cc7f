"""Sounds that *are* AudioSet classes by the way they are made: a generator for each.

Each class follows its AudioSet ontology text and, where there is one, the standard or the physics
behind it. Pitch, timbre and rate vary, often in less than that allows, such that most classes share
a spectrum with others and differ in cadence, glide or modulation over 0.1–4 s, and yet a linear
probe on the mean and deviation of the log-mel bands gets about half of the way.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import uniform_filter1d

from whispertag.data.synth.waves import (
    FADE,
    RATE,
    Rng,
    Wave,
    beats,
    bell,
    between,
    gate,
    knock,
    noise,
    phase,
    place,
    timbre,
    tone,
)

Sound = Callable[[Rng, int], Wave]
METER = 2_000  # samples; 125 ms, the "fast" time weighting of a sound level meter (IEC 61672)
SOUNDS: dict[str, Sound] = {}  # in the order of AudioSet's table
LEAST: dict[str, float] = {}  # the shortest length that still shows the class: two of its cycles


def sound(name: str, least: float) -> Callable[[Sound], Sound]:
    """Enter a generator under its class name; its loudest 125 ms then have an RMS of 0.1."""

    def enter(make: Sound) -> Sound:
        def levelled(rng: Rng, n: int) -> Wave:
            wave_S = make(rng, n)
            power = np.add.reduceat(np.square(wave_S), np.arange(0, n, METER)).max() / METER
            return (wave_S * (0.1 / np.sqrt(max(power, 1e-12)))).astype(np.float32)

        levelled.__doc__ = make.__doc__
        SOUNDS[name], LEAST[name] = levelled, least
        return levelled

    return enter


@sound("Heart sounds, heartbeat", 5)
def heartbeat(rng: Rng, n: int) -> Wave:
    """S1 ("lub"), then the higher and shorter S2 ("dub") after the systole; 50–120 a minute."""
    period, hz = between(rng, 0.5, 1.2), between(rng, 35, 90)
    lub, dub = knock(rng, hz, 0.04), 0.7 * knock(rng, 1.4 * hz, 0.025)
    starts = beats(rng, n, period, 0.04)
    return place(n, starts, [lub]) + place(n, starts + 0.33 * period**0.5, [dub])


@sound("Cricket", 4)
def cricket(rng: Rng, n: int) -> Wave:
    """Chirps of 3–5 pulses, 20–40 pulses and 1.5–4 chirps a second, on a pure carrier."""
    pulses, pulse = int(rng.integers(3, 6)), 1 / between(rng, 20, 40)
    cadence = [0.6 * pulse, 0.4 * pulse] * pulses
    cadence[-1] = max(0.12, 1 / between(rng, 1.5, 4) - pulses * pulse)
    return tone(n, between(rng, 4000, 5500)) * gate(n, cadence)


@sound("Theremin", 5)
def theremin(rng: Rng, n: int) -> Wave:
    """One voice that slides from note to note without a break, with a vibrato of 5–7 Hz."""
    hold = between(rng, 0.4, 1.2)
    steps = np.cumsum(rng.choice([-7, -5, -3, -2, 2, 3, 5, 7], int(n / RATE / hold) + 2)) / 12
    t = np.arange(n) / RATE
    notes = (steps - steps.mean())[(t / hold).astype(int)]
    octaves = uniform_filter1d(notes, int(0.5 * hold * RATE))
    vibrato = rng.uniform(0.02, 0.06) * np.sin(2 * np.pi * rng.uniform(5, 7) * t)
    hz = np.clip(between(rng, 300, 700) * 2 ** (octaves + vibrato), 80, 4000)
    return tone(n, hz, timbre(rng, 4))


@sound("Reversing beeps", 5)
def reversing(rng: Rng, n: int) -> Wave:
    """One tone within SAE J994's 0.7–2.8 kHz, as long on as off, about once a second."""
    half = rng.uniform(0.35, 0.6)
    return tone(n, between(rng, 1000, 1800), timbre(rng, 4)) * gate(n, (half, half))


@sound("Police car (siren)", 6)
def police(rng: Rng, n: int) -> Wave:
    """Wail (11–22 sweeps a minute up and down) or yelp (150–250) over about an octave."""
    wail = rng.uniform(2.7, max(2.7, 0.5 * n / RATE))
    period = wail if rng.random() < 0.5 else 60 / rng.uniform(150, 250)
    height = 1 - np.abs(1 - 2 * phase(n, period))
    return tone(n, between(rng, 400, 800) * rng.uniform(1.8, 2.8) ** height, timbre(rng))


@sound("Ambulance (siren)", 5)
def ambulance(rng: Rng, n: int) -> Wave:
    """Hi-lo: two steady pitches about a fourth apart in turn (DIN 14610 has 4 : 3)."""
    high = phase(n, 2 * rng.uniform(0.4, 0.8)) >= 0.5
    return tone(n, between(rng, 360, 800) * np.where(high, rng.uniform(1.25, 1.5), 1), timbre(rng))


@sound("Ding-dong", 6)
def ding_dong(rng: Rng, n: int) -> Wave:
    """A door chime: one bell, then another three to five semitones lower; repeated."""
    hz, decay, gap = between(rng, 500, 1000), between(rng, 0.2, 0.8), rng.uniform(0.35, 0.8)
    starts = beats(rng, n, gap + rng.uniform(1.0, 2.2), 0.1)
    dong = bell(hz * 2 ** -(rng.integers(3, 6) / 12), decay)
    return place(n, starts, [bell(hz, decay)]) + place(n, starts + gap, [dong])


@sound("Knock", 5)
def knocking(rng: Rng, n: int) -> Wave:
    """Groups of 3–5 even knocks, 3–7 a second, with pauses in between."""
    count, gap = int(rng.integers(3, 6)), 1 / between(rng, 3, 7)
    groups = beats(rng, n, count * gap + rng.uniform(0.4, 1.0), 0.15)
    hit = knock(rng, between(rng, 200, 700), between(rng, 0.01, 0.03))
    return place(n, (groups[:, None] + gap * np.arange(count)).ravel(), [hit])


@sound("Telephone bell ringing", 6)
def telephone_bell(rng: Rng, n: int) -> Wave:
    """A clapper on two gongs at 20 or 25 Hz; rings 0.4–0.2–0.4 s (UK) or 1 s, then 2 s of rest."""
    beat = phase(n, 1 / rng.choice([20, 25]))
    hz, other = between(rng, 900, 2000), rng.uniform(1.1, 1.3)
    one = tone(n, hz, (1, 0, 0.4)) * np.exp(-2.5 * beat)
    two = tone(n, other * hz, (1, 0, 0.4)) * np.exp(-2.5 * ((beat + 0.5) % 1))
    return (one + two) * gate(n, (0.4, 0.2, 0.4, 2.0) if rng.random() < 0.5 else (1.0, 2.0), 800)


@sound("Ringtone", 5)
def ringtone(rng: Rng, n: int) -> Wave:
    """A synthetic motif of 4–8 different notes, 5–10 a second, repeated after a rest."""
    notes, length = int(rng.integers(4, 9)), 1 / between(rng, 5, 10)
    cadence = [0.8 * length, 0.2 * length] * notes
    cadence[-1] += rng.uniform(0.2, 0.8)
    at = (phase(n, sum(cadence)) * sum(cadence) / length).astype(int).clip(max=notes - 1)
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12, 14, 16])
    hz = between(rng, 600, 1000) * 2 ** (rng.permutation(scale)[:notes] / 12)
    return tone(n, hz[at], timbre(rng, 4)) * gate(n, cadence)


@sound("Telephone dialing, DTMF", 4)
def dtmf(rng: Rng, n: int) -> Wave:
    """Random digits, each one of four low plus one of four high tones (ITU-T Q.23)."""
    on, off = between(rng, 0.06, 0.3), between(rng, 0.05, 0.3)
    at = (np.arange(n) / RATE / (on + off)).astype(int)
    low = rng.choice([697, 770, 852, 941], at[-1] + 1)[at]
    high = rng.choice([1209, 1336, 1477, 1633], at[-1] + 1)[at]
    return (tone(n, low) + tone(n, high)) * gate(n, (on, off))


@sound("Dial tone", 4)
def dial_tone(rng: Rng, n: int) -> Wave:
    """350 + 440 Hz (North America) or 350 + 450 Hz (UK) without a break (ITU-T E.180)."""
    return tone(n, 350) + rng.uniform(0.7, 1.4) * tone(n, rng.choice([440, 450]))


@sound("Busy signal", 5)
def busy(rng: Rng, n: int) -> Wave:
    """480 + 620 Hz or a single 400–450 Hz; 0.5 s on, 0.5 off, others 0.25–0.375 (E.180)."""
    half = rng.choice([0.25, 0.375, 0.5])
    pair = tone(n, 480) + tone(n, 620)
    return (pair if rng.random() < 0.5 else tone(n, rng.uniform(400, 450))) * gate(n, (half, half))


@sound("Alarm clock", 5)
def alarm_clock(rng: Rng, n: int) -> Wave:
    """The digital clock's groups of 2–4 quick beeps, then a rest of 0.3–0.6 s."""
    beep, count = rng.uniform(0.05, 0.1), int(rng.integers(2, 5))
    cadence = [beep] * (2 * count)
    cadence[-1] = rng.uniform(0.3, 0.6)
    return tone(n, between(rng, 1800, 3200), timbre(rng, 4)) * gate(n, cadence)


@sound("Civil defense siren", 8)
def civil_defense(rng: Rng, n: int) -> Wave:
    """Attack signal: a rotor's motor switched on and off, its pitch lagging; one or two pitches."""
    half, lag = rng.uniform(1.75, max(1.75, 0.25 * n / RATE)), rng.uniform(1.0, 2.0)
    t = 2 * half * phase(n, 2 * half)
    rise, fall = 1 - np.exp(-t / lag), np.exp(-(t - half) / lag) * (1 - np.exp(-half / lag))
    hz = between(rng, 350, 900) * (0.4 + np.where(t < half, rise, fall))
    partials = timbre(rng)
    second = tone(n, hz * 6 / 5, partials) if rng.random() < 0.4 else 0.0
    return tone(n, hz, partials) + second


@sound("Buzzer", 4)
def buzzer(rng: Rng, n: int) -> Wave:
    """A steady tone whose harmonics reach far up: an electromagnet's contact at 80–500 Hz."""
    return tone(n, between(rng, 80, 500), np.arange(1, 17) ** -rng.uniform(0.3, 0.9))


@sound("Smoke detector, smoke alarm", 8)
def smoke_alarm(rng: Rng, n: int) -> Wave:
    """Temporal three: 0.5 s on, 0.5 off, three times, then 1 s more of rest (ISO 8201);
    a piezo near 3 kHz or the low-frequency sounder's 520 Hz square wave (NFPA 72)."""
    piezo = tone(n, rng.uniform(2700, 3500), timbre(rng, 2))
    low = tone(n, 520, (1, 0, 1 / 3, 0, 1 / 5, 0, 1 / 7))
    return (piezo if rng.random() < 0.7 else low) * gate(n, (0.5, 0.5, 0.5, 0.5, 0.5, 1.5))


@sound("Tick-tock", 5)
def tick_tock(rng: Rng, n: int) -> Wave:
    """Even ticks, 1.5–5 a second, two timbres in turn: the two pallets of an escapement."""
    hz, decay = between(rng, 1500, 4000), between(rng, 0.006, 0.02)
    tick, tock = knock(rng, hz, decay), knock(rng, hz * rng.uniform(0.5, 0.8), decay)
    return place(n, beats(rng, n, 1 / between(rng, 1.5, 5)), [tick, tock])


@sound("Sonar", 6)
def sonar(rng: Rng, n: int) -> Wave:
    """A tone pip every 2–3 s with its reverberant tail and one distinct, weaker reflection."""
    hz, long, decay = between(rng, 900, 1600), rng.uniform(0.1, 0.3), rng.uniform(0.2, 0.6)
    m = int((long + 5 * decay) * RATE)
    t = np.arange(m) / RATE
    envelope = np.where(t < long, 1.0, 0.4 * np.exp(-np.maximum(t - long, 0) / decay))
    ping = tone(m, hz) * uniform_filter1d(envelope, FADE)
    starts = beats(rng, n, rng.uniform(2.0, 3.0), 0.02)
    return place(n, starts, [ping]) + 0.3 * place(n, starts + rng.uniform(0.5, 1.2), [ping])


@sound("Bouncing", 5)
def bouncing(rng: Rng, n: int) -> Wave:
    """Impacts whose gaps and speeds shrink by the coefficient of restitution; dropped anew."""
    gaps = rng.uniform(0.35, 0.7) * rng.uniform(0.65, 0.85) ** np.arange(12)
    fall = np.concatenate([[0.0], np.cumsum(gaps)[:-1]])
    hit = knock(rng, between(rng, 200, 600), between(rng, 0.01, 0.03))
    hits = [gap / gaps[0] * hit for gap in gaps]
    drops = beats(rng, n, gaps.sum() + rng.uniform(0.2, 0.8), 0.1)
    return place(n, (drops[:, None] + fall).ravel(), hits)


@sound("Ding", 5)
def ding(rng: Rng, n: int) -> Wave:
    """A small struck bell, always the same, at gaps of 0.5–1.5 s."""
    hit = bell(between(rng, 1800, 2900), between(rng, 0.2, 0.8))
    return place(n, beats(rng, n, between(rng, 0.5, 1.5), 0.15), [hit])


@sound("Clicking", 5)
def clicking(rng: Rng, n: int) -> Wave:
    """Pitchless transients without a beat: exponential gaps, 3–8 a second, unequal strength."""
    mean = 1 / between(rng, 3, 8)
    starts = np.cumsum(rng.exponential(mean, int(3 * n / RATE / mean) + 8)) - mean / 2
    hit = knock(rng, between(rng, 2500, 5000), between(rng, 0.006, 0.02))
    return place(n, np.maximum(starts, 0), [g * hit for g in rng.uniform(0.4, 1.0, 31)])


@sound("Sine wave", 4)
def sine(rng: Rng, n: int) -> Wave:
    """A continuous, pure tone of fixed pitch and amplitude."""
    return tone(n, between(rng, 300, 3000))


@sound("Chirp tone", 5)
def chirp(rng: Rng, n: int) -> Wave:
    """A pure tone that sweeps one way, 1–2.5 octaves, again and again."""
    octaves = rng.uniform(1.0, 2.5)
    part = phase(n, rng.uniform(0.6, max(0.6, 0.5 * n / RATE)))
    low = between(rng, 300, 3000 / 2**octaves)
    return tone(n, low * 2 ** (octaves * (part if rng.random() < 0.5 else 1 - part)))


@sound("Pulse", 5)
def pulse(rng: Rng, n: int) -> Wave:
    """Any steady sound in short, regular bursts at about 1 Hz."""
    period, on = rng.uniform(0.8, 1.25), rng.uniform(0.08, 0.3)
    if rng.random() < 0.5:
        steady = noise(rng, n, rng.uniform(0.5, 1.5), between(rng, 40, 200))
    else:
        steady = tone(n, between(rng, 80, 300), timbre(rng))
    return steady * gate(n, (on, period - on))


@sound("Static", 4)
def static(rng: Rng, n: int) -> Wave:
    """Hiss that breaks up at random, 2–10 times a second, with crackles of unequal strength."""
    gaps = rng.exponential(1 / between(rng, 2, 10), int(n / RATE * 30) + 4) + 0.01
    hiss = noise(rng, n, rng.uniform(0, 1)) * (0.15 + 0.85 * gate(n, gaps))
    hits = [g * knock(rng, 2500, 0.002) for g in rng.exponential(1.5, 31)]
    return hiss + place(n, np.cumsum(rng.exponential(0.1, int(n / RATE * 20))), hits)


@sound("Mains hum", 4)
def mains_hum(rng: Rng, n: int) -> Wave:
    """50 or 60 Hz and its harmonics, the even ones strongest, without a break."""
    partials = rng.uniform(0.2, 1.0, 8) * timbre(rng, 8)
    partials[1::2] *= 2
    return tone(n, rng.choice([50, 60]) * rng.uniform(0.998, 1.002), partials)


@sound("White noise", 4)
def white(rng: Rng, n: int) -> Wave:
    """Independent samples: equal energy in equal bands."""
    return rng.standard_normal(n, dtype=np.float32)


@sound("Pink noise", 4)
def pink(rng: Rng, n: int) -> Wave:
    """Power 1 / f: equal energy in every octave."""
    return noise(rng, n, 1.0)


@sound("Throbbing", 4)
def throbbing(rng: Rng, n: int) -> Wave:
    """A dull, continuous sound, low tone or low noise, swelling 1.5–5 times a second."""
    dull = tone(n, between(rng, 50, 250), timbre(rng, 5))
    if rng.random() < 0.5:
        dull = noise(rng, n, 1.0, 20, between(rng, 150, 1000))
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * between(rng, 1.5, 5) * np.arange(n) / RATE)
    return dull * (rng.uniform(0.05, 0.3) + swell ** rng.uniform(1, 2))
