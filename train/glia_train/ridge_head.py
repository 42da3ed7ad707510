"""A linear head that ridge regression fits to the features of pretrained layers, before anything is trained."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

#: Strengths of the regularisation to choose from.
ALPHAS: Final = tuple(float(alpha) for alpha in np.logspace(0, 5, 21))
#: Least deviation of a feature that it is divided by. A feature that hardly varies would get a huge weight.
MIN_DEVIATION: Final = 1e-3


class RidgeHead(nn.Module):
    """A linear function of standardised features.

    Attributes:
        weight: float32 (D,).
        bias: float32 (1,).
        centre: float32 (D,), the mean of each feature, which is subtracted.
        spread: float32 (D,), its deviation times the root of D, by which it is then divided. So the features have norm
            1, and a step of the optimiser changes scores as little as it does behind a layer norm.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, features: int, dropout: float) -> None:
        """Make a head with random weights, as those of a linear layer, and features as they are.

        Args:
            features: D.
            dropout: Probability with which a feature is replaced by its mean, while training.
        """
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(nn.init.uniform_(torch.empty(features), -(features**-0.5), features**-0.5))
        self.bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))

    def forward(self, features: Tensor) -> Tensor:
        """Return float32 (N,) of features (N, D)."""
        # This is a product and a sum, not a matrix product, which some engines compute in bfloat16.
        standardised = self.dropout((features.float() - self.centre) / self.spread)
        raw: Tensor = (standardised * self.weight).sum(-1) + self.bias
        return raw

    @torch.no_grad()
    def fit(self, features: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]) -> float:
        """Fit the head by ridge regression, and return the strength of the regularisation.

        The strength is that of `ALPHAS` with the least squared error, where each picture is predicted by a fit to all
        others.

        Args:
            features: float32 (N, D).
            labels: float32 (N,). The head predicts them on a scale with mean 0 and deviation 1.
        """
        from sklearn.linear_model import RidgeCV

        centre, spread = features.mean(axis=0), np.maximum(features.std(axis=0), MIN_DEVIATION)
        found = RidgeCV(alphas=ALPHAS).fit((features - centre) / spread, (labels - labels.mean()) / labels.std())
        norm = len(centre) ** 0.5
        for own, value in (
            (self.centre, centre),
            (self.spread, spread * norm),
            (self.weight, found.coef_ * norm),
            (self.bias, [found.intercept_]),
        ):
            own.copy_(torch.as_tensor(np.asarray(value, np.float32)))
        return float(found.alpha_)
