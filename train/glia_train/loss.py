"""Training losses. A batch's predictions and labels are compared after z-scoring, so raw scores have no fixed scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

from torch import Tensor

LossName = Literal["mse-rho", "plcc"]

#: Least variance that is divided by. At float32 and raw scores near one, a smaller one is rounding.
MIN_VARIANCE: Final = 1e-12


def z_score(values: Tensor) -> Tensor:
    """(N,) -> (N,) of mean 0 and population variance 1; all 0, with finite gradients, where the values are equal."""
    centred = values - values.mean()
    return centred / centred.square().mean().clamp_min(MIN_VARIANCE).sqrt()


def mse_rho_loss(prediction: Tensor, label: Tensor) -> Tensor:
    """Mean of MSE(y', y) / 4 and MSE(rho y', y) / 4, both z-scored: the loss of LoDa's published code.

    Args:
        prediction: float32 (N,), raw scores y'.
        label: float32 (N,), labels y, on any scale.

    Returns:
        A scalar in [0, 1/2]: (1 - rho) (3 + rho) / 8, where both vary.
    """
    y_hat, y = z_score(prediction), z_score(label)
    rho = (y_hat * y).mean()
    return ((y_hat - y).square().mean() / 4 + (rho * y_hat - y).square().mean() / 4) / 2


def plcc_loss(prediction: Tensor, label: Tensor) -> Tensor:
    """(1 - rho) / 2, LoDa's Eq. 5; arguments as `mse_rho_loss`, a scalar in [0, 1]."""
    return (1 - (z_score(prediction) * z_score(label)).mean()) / 2


LOSSES: Final[Mapping[LossName, Callable[[Tensor, Tensor], Tensor]]] = {"mse-rho": mse_rho_loss, "plcc": plcc_loss}
