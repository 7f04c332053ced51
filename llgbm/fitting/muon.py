"""Muon: momentum with updates whose singular values are near 1 (Jordan et al., kellerjordan.github.io/posts/muon).

Gradients of the generator's trunk have nearly low rank, and so have AdamW's updates: adapters of 208 tasks spanned
about sixteen directions. An orthogonalised update moves all directions alike. `torch.optim.Muon` takes matrices only;
this takes stacks of matrices too, such as the generator's heads, and treats each matrix separately.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from llgbm.errors import ConfigError

# s -> a s + b s^3 + c s^5 on every singular value s. The slope a at 0 is as large as possible, so five steps lift small
# values to about 1; the price is that values end between 0.7 and 1.2 and do not converge to 1.
_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_ITERATIONS = 5
_ADAM_RMS = 0.2
"""Root mean square of an AdamW update over its learning rate; with it both take the same rates (2502.16982)."""


def orthogonalised(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """U V^T of matrices (..., n, m) = U S V^T, roughly: the singular values are between 0.7 and 1.2.

    Five steps of a quintic Newton-Schulz iteration; zero stays zero.

    Args:
        matrices: float32.
        dtype: of the iteration; bfloat16 changes the result by a few hundredths.

    Returns:
        Of the matrices' shape, float32.
    """
    a, b, c = _COEFFICIENTS
    # wide, so that the Gram matrix is the smaller one: (k, k) for k = min(n, m)
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    # the Frobenius norm bounds the largest singular value, so all of them are at most 1, where the iteration works
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-20)).to(dtype)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT  # powers of it are powers of S^2: (gram^i x) = U S^(2i + 1) V^T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.to(matrices.dtype)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalised updates, at the rates of AdamW.

    Args:
        params: matrices (n, m), or stacks of them (k, n, m); parameter groups as torch's optimisers take them.
        lr: learning rate.
        momentum: of the gradients.
        weight_decay: decoupled, times the learning rate.
        dtype: of the products in the orthogonalisation.

    Raises:
        ConfigError: a parameter has fewer than two dimensions.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._dtype = dtype
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            if any(p.dim() < 2 for p in group["params"]):
                raise ConfigError("Muon trains matrices; give vectors to another optimiser")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                gathered = state["momentum"].mul_(group["momentum"]).add_(p.grad)
                # Nesterov: the gradient plus the momentum that already holds it
                update = orthogonalised(p.grad + group["momentum"] * gathered, self._dtype)
                # U V^T (n, m) has the root mean square 1 / sqrt(max(n, m)); scaled to that of AdamW
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * _ADAM_RMS * math.sqrt(max(p.shape[-2:])))
