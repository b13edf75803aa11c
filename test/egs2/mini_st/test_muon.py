"""Our Muon takes the steps of torch's, which computes in bfloat16."""

import torch
from local_modules import load


def test_the_same_steps_as_torch():
    generator = torch.Generator().manual_seed(0)
    for shape in ((24, 12), (12, 24), (16, 16)):
        start = torch.randn(shape, generator=generator)
        ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
        options = {"lr": 0.01, "weight_decay": 0.05}
        optims = (
            load("muon").Float32Muon([ours], **options),
            torch.optim.Muon([theirs], **options, adjust_lr_fn="match_rms_adamw"),
        )
        for _ in range(4):
            gradient = torch.randn(shape, generator=generator)
            for parameter, optim in zip((ours, theirs), optims, strict=True):
                parameter.grad = gradient.clone()
                optim.step()
        moved = (theirs - start).abs().mean()
        assert (ours - theirs).abs().max() < 0.05 * moved * 4


def test_singular_values_come_near_one():
    matrix = load("muon").orthogonalised(torch.randn(20, 8, generator=torch.Generator().manual_seed(1)))
    values = torch.linalg.svdvals(matrix)
    assert values.min() > 0.6 and values.max() < 1.3
