"""ESPnet's reporter as plain values, so that a resumed training reports what an uninterrupted one would."""

import time
from datetime import timedelta
from typing import Any

import torch
from espnet2.train.reporter import Average, Reporter, SubReporter, WeightedAverage


def reporter_state(reporter: Reporter, epoch: int) -> dict[str, Any]:
    """Results of the epochs before ``epoch``; times in seconds."""
    stats = {
        number: {
            part: {name: v.total_seconds() if isinstance(v, timedelta) else v for name, v in values.items()}
            for part, values in parts.items()
        }
        for number, parts in reporter.stats.items()
        if number < epoch
    }
    return {"stats": stats, "epoch": epoch - 1}


def load_reporter(reporter: Reporter, state: dict[str, Any]) -> None:
    """Restore what `reporter_state` returned."""
    stats = {
        number: {
            part: {name: timedelta(seconds=v) if name == "time" else v for name, v in values.items()}
            for part, values in parts.items()
        }
        for number, parts in state["stats"].items()
    }
    reporter.load_state_dict({"stats": stats, "epoch": state["epoch"]})


def statistics_state(statistics: SubReporter) -> dict[str, Any]:
    """The values of every batch of an epoch so far."""
    series = {}
    for name, values in statistics.stats.items():
        series[name] = {"value": torch.tensor([v.value for v in values], dtype=torch.float64)}
        if isinstance(values[0], WeightedAverage):
            series[name]["weight"] = torch.tensor([v.weight for v in values], dtype=torch.float64)
    return {
        "series": series,
        "count": statistics.count,
        "total_count": statistics.total_count,
        "seconds": time.perf_counter() - statistics.start_time,
    }


def load_statistics(statistics: SubReporter, state: dict[str, Any]) -> None:
    """Restore what `statistics_state` returned into the observation of the same epoch."""
    for name, columns in state["series"].items():
        values = columns["value"].tolist()
        if "weight" in columns:
            pairs = zip(values, columns["weight"].tolist(), strict=True)
            statistics.stats[name] = [WeightedAverage(value, weight) for value, weight in pairs]
        else:
            statistics.stats[name] = [Average(value) for value in values]
    statistics.count, statistics.total_count = state["count"], state["total_count"]
    statistics.start_time = time.perf_counter() - state["seconds"]
