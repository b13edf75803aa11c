"""Shapes of the learning-rate schedules."""

import pytest
import torch

from espnet_llmst.train.schedulers import WarmupCosine, WarmupLinear


def rates(scheduler_class, steps, **conf):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = scheduler_class(optimizer, **conf)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_linear():
    assert rates(WarmupLinear, 9, total_steps=7, warmup_steps=3) == pytest.approx(
        [0.5, 1.0, 1.5, 2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    )


def test_cosine_falls_to_half_midway_and_to_zero():
    values = rates(WarmupCosine, 110, total_steps=100, warmup_ratio=0.1)
    assert max(values) == values[10] == 2.0 and values[55] == pytest.approx(1.0) and values[100:] == [0.0] * 10


def test_state_survives_a_checkpoint():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = WarmupCosine(optimizer, total_steps=10, warmup_steps=0)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    again = WarmupCosine(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), total_steps=10, warmup_steps=0)
    again.load_state_dict(scheduler.state_dict())
    assert again.get_last_lr() == scheduler.get_last_lr() and again.last_epoch == 4
