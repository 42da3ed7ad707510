"""Training losses.

A loss z-scores the predictions and the labels of a batch before it compares them, so raw scores have no fixed scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

from torch import Tensor

LossName = Literal["mse-rho", "plcc"]

#: Least variance that a z-score divides by. In float32, for raw scores near one, a smaller variance is rounding error.
MIN_VARIANCE: Final = 1e-12


def z_score(values: Tensor) -> Tensor:
    """Return values (N,) scaled to mean 0 and population variance 1.

    Where all values are equal, the result is 0 and the gradients are finite.
    """
    centred = values - values.mean()
    return centred / centred.square().mean().clamp_min(MIN_VARIANCE).sqrt()


def mse_rho_loss(prediction: Tensor, label: Tensor) -> Tensor:
    """Return the loss of LoDa's published code: the mean of MSE(y', y) / 4 and MSE(rho y', y) / 4.

    y' and y are z-scored, and rho is their correlation.

    Args:
        prediction: float32 (N,), raw scores y'.
        label: float32 (N,), labels y, on any scale.

    Returns:
        A scalar in [0, 1/2]. It equals (1 - rho) (3 + rho) / 8 where both y' and y vary.
    """
    y_hat, y = z_score(prediction), z_score(label)
    rho = (y_hat * y).mean()
    return ((y_hat - y).square().mean() / 4 + (rho * y_hat - y).square().mean() / 4) / 2


def plcc_loss(prediction: Tensor, label: Tensor) -> Tensor:
    """Return (1 - rho) / 2, LoDa's Eq. 5, a scalar in [0, 1]; arguments as for `mse_rho_loss`."""
    return (1 - (z_score(prediction) * z_score(label)).mean()) / 2


LOSSES: Final[Mapping[LossName, Callable[[Tensor, Tensor], Tensor]]] = {"mse-rho": mse_rho_loss, "plcc": plcc_loss}
