"""Ridge classifier: linear regression to one-hot labels in closed form, for few clips with many features.

Features are standardised by the training clips. It has no random part and no iterations, so the same features give the
same classes on one machine.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

PENALTY = 0.1
"""Ridge penalty, relative to the mean squared length of a standardised training clip."""


class RidgeClassifier:
    """A linear classifier of features.

    Args:
        features: of the training clips.
        labels: their classes, from 0.
    """

    def __init__(self, features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> None:
        x = features.double()
        self.mean, self.std = x.mean(0), x.std(0).clamp(min=1e-6)
        targets = torch.nn.functional.one_hot(labels).double()
        self.offset = targets.mean(0)
        x = (x - self.mean) / self.std
        products = x @ x.T  # (n, n): solved in the space of clips, of which there are few
        penalty = PENALTY * products.diagonal().mean()
        identity = torch.eye(len(x), dtype=x.dtype)
        solved = torch.linalg.solve(products + penalty * identity, targets - self.offset)
        self.weights = x.T @ solved  # (d, classes)

    def __call__(self, features: Float[Tensor, "m d"]) -> Int64[Tensor, " m"]:
        """The most likely class of each clip."""
        scores = (features.double() - self.mean) / self.std @ self.weights + self.offset
        return scores.argmax(1)
