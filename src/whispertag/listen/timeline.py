"""The pooled states of one recording on one absolute clock, whatever windows Whisper cut."""

import torch
from torch import Tensor

from whispertag.model.joint import Span


class Timeline:
    """Steps of `pool` positions: step k covers positions [k · pool, (k + 1) · pool) of the recording.

    A step comes whole from the latest pass that holds it whole. One that no pass holds whole, where a window ends in
    the midst of it and the next begins there, is the mean of its two parts.
    """

    def __init__(self, pool: int):
        self.pool = pool
        self._steps: dict[int, tuple[Span, Tensor]] = {}

    def add(self, span: Span, means_LTD: Tensor) -> None:
        """What one pass makes of `span`: a mean for each of `span.steps(pool)`."""
        for t, piece in enumerate(span.steps(self.pool)):
            step, mean_LD = piece.begin // self.pool, means_LTD[:, t]
            if old := self._steps.get(step):
                piece, mean_LD = self._better(old, (piece, mean_LD))
            self._steps[step] = piece, mean_LD

    def _better(self, old: tuple[Span, Tensor], new: tuple[Span, Tensor]) -> tuple[Span, Tensor]:
        (before, mean), (after, more) = old, new
        if before.end == after.begin:
            both = Span(before.begin, after.end)
            return both, (mean * len(before) + more * len(after)) / len(both)
        return new if len(after) >= len(before) else old

    def cut(self, first: int, end: int) -> Tensor | None:
        """states_LTD of the steps in [first, end) that have been heard; None if none has."""
        means = [self._steps[k][1] for k in range(first, end) if k in self._steps]
        return torch.stack(means, dim=1) if means else None

    def forget(self, before: int) -> None:
        """Let go of the steps before this one: memory must not grow with the recording."""
        for k in [k for k in self._steps if k < before]:
            del self._steps[k]
