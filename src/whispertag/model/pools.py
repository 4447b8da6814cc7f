"""Pools: (*, N, D) → (*, D). The same five serve time and layers."""

import torch
from torch import Tensor, nn


class Mean(nn.Module):
    """The plain mean over N."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=-2)


class Last(nn.Module):
    """The last of the N."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., -1, :]


class Weighted(nn.Module):
    """A learnt average, `w · x / Σw`, starting at the mean; weights may go negative (Whisper-AT)."""

    def __init__(self, n: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((n,), 1.0 / n))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...nd,n->...d", x, self.weight / self.weight.sum())


class Softmax(nn.Module):
    """A learnt convex average, starting at the mean (the weighting customary for SUPERB probes)."""

    def __init__(self, n: int):
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...nd,n->...d", x, self.logit.softmax(dim=0))


class Attend(nn.Module):
    """One Transformer block over the N, then the mean: the "TR" of Whisper-AT.

    The block is Whisper's own (pre-norm, GELU MLP of 4 × width, no dropout).
    """

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        from whisper.model import ResidualAttentionBlock

        if width % n_heads:
            raise ValueError(f"{n_heads} attention heads do not divide a width of {width}")
        self.block = ResidualAttentionBlock(width, n_heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.flatten(0, -3)).mean(dim=-2).unflatten(0, x.shape[:-2])


POOLS = ("mean", "last", "weighted", "softmax", "attend")


def make_pool(kind: str, n: int, width: int, n_heads: int) -> nn.Module:
    """A pool by name, over `n` things of `width` channels; `n_heads` matters to `attend` alone."""
    match kind:
        case "mean":
            return Mean()
        case "last":
            return Last()
        case "weighted":
            return Weighted(n)
        case "softmax":
            return Softmax(n)
        case "attend":
            return Attend(width, n_heads)
    raise ValueError(f"no pool {kind!r}: give one of {', '.join(POOLS)}")
