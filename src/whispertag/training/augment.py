"""What is done to states and labels of a training batch: mixup, time mask, label smoothing.

All randomness comes from the generator handed in, which the Tagger makes from (seed, epoch, step,
rank): a run that is killed and resumed draws what it would have drawn.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Whisper-AT's recipe by default; 0 turns a part off.

    mixup            probability that a clip is mixed with another of its batch
    mixup_beta       λ ~ Beta(β, β)
    time_mask        at most this many steps are masked, the same in all layers
    label_smoothing  s: present → 1 − s, absent → s / C
    """

    mixup: float = 0.5
    mixup_beta: float = 10.0
    time_mask: int = 10
    label_smoothing: float = 0.1

    def __post_init__(self):
        for name in ("mixup", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name}={getattr(self, name)}: give 0 … 1")
        if self.time_mask < 0 or self.mixup_beta <= 0:
            raise ValueError("augment: time_mask must not be negative and mixup_beta must be positive")

    def __call__(self, states_BLTD: Tensor, labels_BC: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        states_BLTD, labels_BC = self.mix(states_BLTD, labels_BC, rng)
        return self.mask(states_BLTD, rng), self.smooth(labels_BC)

    def mix(self, states_BLTD: Tensor, labels_BC: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """λ · clip + (1 − λ) · another, labels alike; λ = 1 for the clips left alone."""
        n_clips = len(states_BLTD)
        lam = rng.beta(self.mixup_beta, self.mixup_beta, n_clips)
        lam = np.where(rng.random(n_clips) < self.mixup, lam, 1.0)
        partner = torch.from_numpy(rng.integers(n_clips, size=n_clips)).to(states_BLTD.device)
        lam_B = torch.from_numpy(lam).to(states_BLTD)
        lam_BC, lam_BLTD = lam_B[:, None], lam_B[:, None, None, None]
        # lerp, so that λ = 1 gives the clip back bit for bit.
        return (
            torch.lerp(states_BLTD[partner], states_BLTD, lam_BLTD),
            torch.lerp(labels_BC[partner], labels_BC, lam_BC.to(labels_BC)),
        )

    def mask(self, states_BLTD: Tensor, rng: np.random.Generator) -> Tensor:
        """Zero a span of 0 … time_mask steps of every clip."""
        n_clips, _, n_steps, _ = states_BLTD.shape
        width = rng.integers(min(self.time_mask, n_steps - 1) + 1, size=n_clips)
        start = rng.integers(n_steps - width + 1)
        steps = np.arange(n_steps)
        hidden_BT = (steps >= start[:, None]) & (steps < (start + width)[:, None])
        hidden = torch.from_numpy(hidden_BT).to(states_BLTD.device)
        return states_BLTD.masked_fill(hidden[:, None, :, None], 0.0)

    def smooth(self, labels_BC: Tensor) -> Tensor:
        """Linear between the two smoothed values, so that mixed labels stay mixed."""
        absent, present = self.label_smoothing / labels_BC.shape[1], 1 - self.label_smoothing
        return absent + labels_BC * (present - absent)
