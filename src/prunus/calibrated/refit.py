"""Making up for channels that leave: the consumer's other columns and its bias, fitted to what it gave before.

Shapes: T tokens, R rows and C columns of the consumer, K columns that stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.unstructured import Gram, Statistics, Sum, add_products, inverse_factor, mirrored


@dataclass
class Moments:
    """Sums over calibration data of what a consumer is given before (x) and after (x') channels have left."""

    kept: Tensor
    """Columns that stay, (K,)."""
    tokens: int
    before: Tensor
    """Σ x, (C,)."""
    after: Tensor
    """Σ x', (K,)."""
    gram: Tensor
    """Σ x' x'ᵀ, (K, K), on and above the diagonal."""
    cross: Tensor
    """Σ x x'ᵀ, (C, K)."""

    @classmethod
    def none(cls, kept: Tensor, columns: int) -> Moments:
        """Nothing seen so far."""
        stay = len(kept)
        sizes = ((columns,), (stay,), (stay, stay), (columns, stay))
        return cls(kept, 0, *(torch.zeros(size, device=kept.device) for size in sizes))

    @classmethod
    def of_columns(cls, kept: Tensor, known: Statistics) -> Moments:
        """Of inputs that stay what they are when others leave."""
        sums_C, cross_CK = known[Sum].total, known[Gram].products[:, kept]
        return cls(kept, known.tokens, sums_C, sums_C[kept], cross_CK[kept], cross_CK)

    def add(self, before_TC: Tensor, after_TC: Tensor) -> None:
        """Counts one call, with its tokens in the same order."""
        before_TC, after_TK = before_TC.float(), after_TC.float()[:, self.kept]
        self.tokens += len(before_TC)
        self.before += before_TC.sum(0)
        self.after += after_TK.sum(0)
        add_products(self.gram, after_TK)
        self.cross.addmm_(before_TC.T, after_TK)

    def fitted_bias(self, W_RC: Tensor, W_RK: Tensor) -> Tensor:
        """What is added to the bias so that the mean of the output is what it was, (R,)."""
        return (W_RC @ self.before - W_RK @ self.after) / max(self.tokens, 1)

    def fitted_change(self, W_RC: Tensor, damping: float, with_bias: bool) -> Tensor:
        """What is added to W_K so that ‖W x − W' x'‖² + λ ‖W' − W_K‖² is the least, (R, K), λ = damping · mean diag Σ x' x'ᵀ.

        Held to what they were, columns are never worse on these data than those, whatever the damping.

        Args:
            with_bias: the bias takes the means, so that only what moves around them is fitted.
        """
        gram_KK, cross_CK, W_RK = mirrored(self.gram), self.cross, W_RC[:, self.kept]
        if with_bias:
            gram_KK = gram_KK - torch.outer(self.after, self.after) / max(self.tokens, 1)
            cross_CK = cross_CK - torch.outer(self.before, self.after) / max(self.tokens, 1)
        U_KK = inverse_factor(gram_KK, damping)
        return (W_RC @ cross_CK - W_RK @ gram_KK) @ U_KK.T @ U_KK
