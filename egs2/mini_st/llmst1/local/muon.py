"""Muon in float32: torch's own computes in bfloat16, which a processor without it emulates at a hundredth of the speed.

Shapes: M rows, N columns of a weight, M <= N after turning.
"""

from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, as in torch.optim.Muon
STEPS = 5
EPS = 1e-7


def orthogonalised(matrix_MN: torch.Tensor) -> torch.Tensor:
    """About U V' of the matrix's singular value decomposition U S V', by Newton-Schulz."""
    turned = matrix_MN.size(0) > matrix_MN.size(1)
    x_MN = matrix_MN.T if turned else matrix_MN
    x_MN = x_MN / x_MN.norm().clamp(min=EPS)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram_MM = x_MN @ x_MN.T
        x_MN = torch.addmm(x_MN, torch.addmm(gram_MM, gram_MM, gram_MM, beta=b, alpha=c), x_MN, beta=a)
    return x_MN.T if turned else x_MN


class Float32Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` with Nesterov momentum and ``adjust_lr_fn="match_rms_adamw"``, computed in float32.

    Args:
        params: matrices only.
        lr, weight_decay, momentum: as there.
    """

    def __init__(self, params: Iterable, lr: float, weight_decay: float = 0.1, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        """One update of all matrices that have a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                average = state.setdefault("momentum_buffer", torch.zeros_like(matrix))
                average.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonalised(matrix.grad.lerp(average, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)
