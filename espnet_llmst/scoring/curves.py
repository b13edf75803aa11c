"""Training curves of a phase: from its tensorboard events, or from train.log where there are none.

Events come first because a resumed training adds to them, while its train.log begins anew.
"""

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

MOST_POINTS = 400
_INTERVAL = re.compile(r"INFO: (\d+)epoch:train:\d+-(\d+)batch: (.*)")
_EPOCH = re.compile(
    r"INFO: (\d+)epoch results: \[train\] (.*?), time=.*?total_count=(\d+)(?:, \[valid\] (.*?), time=)?"
)
_VALUE = re.compile(r"(\w+)=([-+.\deE]+|nan|inf)")
Logged = dict[int, list[float]]  # iteration -> values in the order of logging


def training_curves(phase_dir: str | Path) -> dict | None:
    """What a phase logged on both training and validation data (loss, accuracy), or None without a record.

    Returns:
        ``{"source": file or folder, "series": {"loss": {"train": [[iteration, value], ...], "valid": [...]}}}``;
        ``train`` holds averages over intervals within the epochs where they were logged.
    """
    phase = Path(phase_dir)
    events, log = phase / "tensorboard", phase / "train.log"
    if any(events.glob("*/events*")) and importlib.util.find_spec("tensorboard"):
        parts = {part: _read_events(events / part) for part in ("train", "valid")}
        return _curves(events, parts, _epoch_ends(parts["train"]))
    if log.is_file():
        parts, ends = _read_log(log)
        return _curves(log, parts, ends)
    return None


def _curves(source: Path, parts: dict[str, dict[str, Logged]], ends: set[int]) -> dict | None:
    series = {}
    for name, valid in parts["valid"].items():
        train = parts["train"].get(name, {})
        last = {step: values[-1] for step, values in train.items()}
        series[name] = {
            "train": _thin(_within_epochs(train, ends) or last),
            "valid": _thin({step: values[-1] for step, values in valid.items()}),
        }
    return {"source": str(source), "series": series} if series else None


def _within_epochs(train: Logged, ends: set[int]) -> dict[int, float]:
    """The averages over intervals: at its end an epoch logs one over all of it, which is left out here."""
    intervals = {step: values[:-1] if step in ends else values for step, values in train.items()}
    return {step: values[-1] for step, values in intervals.items() if values}


def _epoch_ends(train: dict[str, Logged]) -> set[int]:
    return set(train.get("iter_epoch", {}))


def _read_events(folder: Path) -> dict[str, Logged]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found: dict[str, Logged] = {tag: {} for tag in events.Tags()["scalars"]}
    for tag, logged in found.items():
        for point in events.Scalars(tag):
            logged.setdefault(point.step, []).append(point.value)
    return found


def _read_log(path: Path) -> tuple[dict[str, dict[str, Logged]], set[int]]:
    """Values by part and name, and the iterations at which epochs ended."""
    parts: dict[str, dict[str, Logged]] = {"train": {}, "valid": {}}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    epochs = [match for match in map(_EPOCH.search, lines) if match]
    ends = {int(match[1]): int(match[3]) for match in epochs}
    for match in filter(None, map(_INTERVAL.search, lines)):
        epoch = int(match[1])
        if epoch == 1 or epoch - 1 in ends:
            _add(parts["train"], ends.get(epoch - 1, 0) + int(match[2]), match[3])
    for match in epochs:
        _add(parts["train"], int(match[3]), match[2])
        _add(parts["valid"], int(match[3]), match[4] or "")
    return parts, set(ends.values())


def _add(table: dict[str, Logged], step: int, values: str) -> None:
    for name, value in _VALUE.findall(values):
        table.setdefault(name, {}).setdefault(step, []).append(float(value))


def _thin(points: dict[int, float]) -> list[list[float]]:
    """Points in order, finite only; neighbours are averaged where there are more than a chart can show."""
    ordered = [(step, value) for step, value in sorted(points.items()) if abs(value) < float("inf")]
    size = -(-len(ordered) // MOST_POINTS) or 1
    groups: Iterable = (ordered[i : i + size] for i in range(0, len(ordered), size))
    return [[group[-1][0], round(sum(value for _, value in group) / len(group), 6)] for group in groups]
