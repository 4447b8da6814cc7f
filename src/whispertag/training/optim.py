"""Optimisers with their schedules: how the learning rate goes over a run."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class StepDecay:
    """Whisper-AT's: Adam, constant until `hold_epochs` have passed, then × `factor` every `every`."""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 5e-7
    hold_epochs: float = 15
    every: float = 5
    factor: float = 0.75

    def lr_factor(self, epoch: float, epochs: float) -> float:
        if epoch < self.hold_epochs:
            return 1.0
        return self.factor ** (1 + math.floor((epoch - self.hold_epochs) / self.every))

    def optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
        return Adam(parameters, self.lr, (self.betas[0], self.betas[1]), weight_decay=self.weight_decay)


@dataclass(frozen=True)
class OneCycle:
    """AdamW with a linear warm-up over the first `warmup` of the run and a cosine to zero."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    warmup: float = 0.25

    def lr_factor(self, epoch: float, epochs: float) -> float:
        done = min(1.0, epoch / epochs)
        if done < self.warmup:
            return done / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))

    def optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
        return AdamW(parameters, self.lr, (self.betas[0], self.betas[1]), weight_decay=self.weight_decay)


Optim = StepDecay | OneCycle


def schedule(optim: Optim, optimizer: Optimizer, steps_per_epoch: int, epochs: float) -> LambdaLR:
    """Per step, as a function of the epochs that have passed: nothing to lose on resuming.

    Half a step late, so that neither the first nor the last step of a cycle is taken with 0; steps
    beyond the plan (the number of batches is an estimate) are taken like the last one planned.
    """
    last = steps_per_epoch * epochs - 1
    return LambdaLR(optimizer, lambda step: optim.lr_factor((min(step, last) + 0.5) / steps_per_epoch, epochs))
