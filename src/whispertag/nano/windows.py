"""What nano learns from: batches of windows of sound, with the tokens Whisper would write.

Batch number `step` is a function of (seed, step) alone, so a run that is resumed sees what it would have seen.
"""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from whispertag.audio import N_POSITIONS, SAMPLE_RATE, SAMPLES_PER_POSITION, WINDOW_SECONDS, log_mel
from whispertag.nano.scenes import Rng, Scenes, Segment
from whispertag.nano.vocabulary import GRID, Vocabulary

IGNORE = -100  # targets that are not learnt: prompt and padding
N_MELS = 80
MAX_FIRST_STAMP = 1.0  # seconds: Whisper's decoding allows no later first time stamp


class TrainingWindows(Dataset):
    """Batches number `first` … `last` - 1 of a training of `steps`."""

    def __init__(self, scenes: Scenes, steps: int, seed: int, first: int = 0, last: int | None = None):
        self.scenes, self.recipe, self.vocabulary = scenes, scenes.recipe, Vocabulary()
        self.steps, self.seed, self.first, self.last = steps, seed, first, steps if last is None else last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        step = self.first + index
        if not self.first <= step < self.last:
            raise IndexError(index)
        rng, recipe, progress = np.random.default_rng([self.seed, step]), self.recipe, step / self.steps
        grown = min(1.0, progress / recipe.growing) if recipe.growing else 1.0
        shortest, longest = recipe.seconds
        seconds = round(rng.uniform(shortest, recipe.short + (longest - recipe.short) * grown), 1)
        if rng.random() < recipe.long * grown:
            whole = rng.random() < 0.5
            seconds = float(WINDOW_SECONDS) if whole else round(rng.uniform(longest, WINDOW_SECONDS), 1)
        prompted = rng.random() < recipe.prompted * grown
        windows = [self.scenes.window(rng, seconds, progress) for _ in range(round(recipe.audio_per_step / seconds))]
        n_positions = round(seconds * SAMPLE_RATE) // SAMPLES_PER_POSITION
        firsts = [
            int(rng.integers(0, N_POSITIONS - n_positions + 1)) if rng.random() < recipe.shifted * grown else 0
            for _ in windows
        ]
        texts = [
            self.tokens(rng, segments, first * SAMPLES_PER_POSITION / SAMPLE_RATE, prompted)
            for (_, segments), first in zip(windows, firsts)
        ]
        words = [[self.vocabulary.word(w) for s in segments for w in s.words] for _, segments in windows]
        mel_BMF = log_mel(torch.from_numpy(np.stack([wave_S for wave_S, _ in windows])), N_MELS)
        zeros_B = torch.from_numpy(rng.random(len(windows)) < recipe.zeros)
        return {
            "mel_BMF": mel_BMF,
            "first_B": torch.tensor(firsts),
            "after_B": torch.where(zeros_B, 0.0, floor_of(mel_BMF)),
            "tokens_BN": _pad([inputs for inputs, _ in texts], self.vocabulary.eot),
            "targets_BN": _pad([targets for _, targets in texts], IGNORE),
            "words_BW": _pad([w or [0] for w in words], 0),
            "n_words_B": torch.tensor([len(w) for w in words]),
            "whole_B": torch.tensor([not any(s.cut for s in segments) for _, segments in windows]),
        }

    def tokens(self, rng: Rng, segments: list[Segment], offset: float, prompted: bool) -> tuple[list[int], list[int]]:
        """→ decoder input and targets, of equal length. `offset`: where the window's sound begins, in seconds."""
        v = self.vocabulary
        stamped = rng.random() < self.recipe.stamped or any(s.cut for s in segments)
        prompt = self._prompt(rng, stamped) if prompted and rng.random() < 0.5 else []
        if not segments:  # Whisper's no_speech is learnt where the text would begin, and that no text follows
            return (
                [*prompt, v.sot, v.stamp(0) if stamped else v.no_timestamps],
                [*[IGNORE] * len(prompt), v.no_speech, v.eot],
            )
        if not stamped:
            text = [v.no_timestamps, *(v.word(w) for s in segments for w in s.words)]
        else:
            text, earliest = [], 0
            for i, segment in enumerate(segments):
                start = max(int((segment.start + offset) / GRID + 1e-6), earliest)
                if i == 0 and start * GRID > MAX_FIRST_STAMP:
                    start = 0
                end = min(max(int(np.ceil((segment.end + offset) / GRID - 1e-6)), start + 1), 150)
                # Of a segment that the window cuts, only the beginning is told: the next window starts there.
                told = [] if segment.cut else [*(v.word(w) for w in segment.words), v.stamp(end)]
                text += [v.stamp(start), *told]
                earliest = end
        text = [v.sot, *text, v.eot]
        return [*prompt, *text[:-1]], [*[IGNORE] * len(prompt), *text[1:]]

    def _prompt(self, rng: Rng, stamped: bool) -> list[int]:
        """What was said before, as Whisper gives it to the decoder: with time stamps, the last tokens alone."""
        v, n_max = self.vocabulary, int(rng.integers(2, 64))
        said, at = list[int](), 0
        while len(said) < n_max:
            at = (at + int(rng.integers(0, 10))) % 130
            words = [int(rng.integers(0, 10 if rng.random() < 0.6 else v.eot)) for _ in range(int(rng.integers(1, 8)))]
            stop = at + 2 * len(words)
            said += [v.stamp(at), *words, v.stamp(min(150, stop))] if stamped else words
            at = stop
        return [v.sot_prev, *said[-n_max:]]


def floor_of(mel_BMF: Tensor) -> Tensor:
    """What silence beside each window is on Whisper's scale: 8 decades below the loudest."""
    return mel_BMF.amax(dim=(1, 2)) - 2.0


def _pad(rows: list[list[int]], fill: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
