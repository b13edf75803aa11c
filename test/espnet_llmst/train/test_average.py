"""Averages of model files: right for every criterion and number, which ESPnet's own are not."""

from types import SimpleNamespace

import pytest
import torch
from espnet2.train.reporter import Reporter

from espnet_llmst.train.results import average, mean_of


@pytest.fixture
def training(tmp_path):
    """Three epochs; the loss prefers the later ones, the accuracy the first."""
    reporter = Reporter()
    reporter.set_epoch(3)
    for epoch, weight in ((1, 10.0), (2, 100.0), (3, 1000.0)):
        state = {"w": torch.full((2,), weight), "batches": torch.tensor(epoch)}
        torch.save(state, tmp_path / f"{epoch}epoch.pth")
        reporter.stats[epoch] = {"valid": {"loss": 1.0 / epoch, "acc": 1.0 / epoch}}
    criteria = [["valid", "loss", "min"], ["valid", "acc", "max"], ["valid", "bleu", "max"]]
    options = SimpleNamespace(keep_nbest_models=[1, 2, 3], best_model_criterion=criteria)
    return SimpleNamespace(directory=tmp_path, reporter=reporter, options=options)


def test_every_criterion_and_number(training):
    average(training)
    found = {path.name: torch.load(path, weights_only=True) for path in training.directory.glob("valid*")}
    expected = {
        "valid.loss.ave_1best.pth": (1000.0, 3),
        "valid.loss.ave_2best.pth": (550.0, 3),
        "valid.loss.ave_3best.pth": (370.0, 3),
        "valid.loss.ave.pth": (370.0, 3),
        "valid.acc.ave_1best.pth": (10.0, 1),
        "valid.acc.ave_2best.pth": (55.0, 1),
        "valid.acc.ave_3best.pth": (370.0, 1),
        "valid.acc.ave.pth": (370.0, 1),
    }
    assert {name: (state["w"][0].item(), state["batches"].item()) for name, state in found.items()} == expected


def test_bfloat16_is_summed_in_float32(tmp_path):
    files = [tmp_path / f"{n}epoch.pth" for n in range(10)]
    for file in files:
        torch.save({"w": torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16)}, file)
    assert torch.equal(mean_of(files)["w"], torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16))
