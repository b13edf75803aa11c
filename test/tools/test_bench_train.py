"""The benchmark of training: every way computes the same loss on the same utterances, and the table says so."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def bench(monkeypatch):
    path = Path(__file__).resolve().parents[2] / "tools/bench_train.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = {"whisper": (16, 1, 2), "lm": (16, 1, 2, 2, 32), "vocabulary": 50, "dtype": "float32"}
    monkeypatch.setitem(module.PRESETS, "tiny", small)
    return module


def test_every_way_has_the_same_loss(bench, tmp_path, monkeypatch, capsys):
    options = ["--utterances", "6", "--rounds", "2", "--batch_size", "3", "--batch_bins", "200", "--peak_tflops", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_train.py", *options, "--json", str(tmp_path / "bench.json")])
    bench.main()
    result, shown = json.loads((tmp_path / "bench.json").read_text()), capsys.readouterr().out
    assert list(result["seconds"]) == list(bench.WAYS) and min(result["flop"].values()) > 1e6
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in result["seconds"].values())
    assert max(result["loss_differs"].values()) < 1e-6 and result["loss_differs"].keys() == set(bench.WAYS)
    assert all(f"\n{way} " in shown for way in bench.WAYS)


def test_another_loss_is_an_error(bench, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_train.py", "--utterances", "3", "--rounds", "1", "--ways", "naive"])
    monkeypatch.setattr(bench, "naive_loss", lambda model, **batch: 2 * model(**batch)[0])
    with pytest.raises(SystemExit, match="losses differ"):
        bench.main()


@pytest.mark.parametrize("durations, mean, longest", [("covost", 5.5, 11), ("must_c", 6.6, 17.7)])
def test_durations_are_those_named(bench, durations, mean, longest):
    quantile, _ = bench.DURATIONS[durations]
    seconds = [quantile((n + 0.5) / 200) for n in range(200)]
    assert sum(seconds) / 200 == pytest.approx(mean, abs=0.15) and max(seconds) == pytest.approx(longest, abs=0.5)
