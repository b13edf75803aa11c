"""A paper's table beside our own scores: rows from YAML, published numbers, and how often the order agrees."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from espnet_llmst.cli import InputError, read_yaml

KEYS = {"title", "metric", "decode", "rows", "note"}
ROW_KEYS = {"name", "published", "method", "phase", "sets", "decode"}


class Cell(NamedTuple):
    """Our score of one row: the mean over its sets, its interval when there is one set, and the control's score."""

    score: float
    interval: tuple[float, float] | None
    control: float | None


def load_table(path: str | Path) -> dict:
    """Read ``conf/paper/<table>.yaml``.

    ``title``, ``metric`` (a name in scores.json), ``decode`` (folder of the decode, for all rows or one) and
    ``rows``: name, published (a number or null), method, phase, sets (averaged).

    Raises:
        InputError: unknown or missing keys.
    """
    table = read_yaml(path)
    for what, content, keys in [("table", table, KEYS), *(("row", row, ROW_KEYS) for row in table.get("rows", []))]:
        unknown = set(content) - keys
        if unknown:
            raise InputError(
                f"{path}: unknown key '{sorted(unknown)[0]}' of a {what}; known: {', '.join(sorted(keys))}"
            )
    lacking = {"title", "metric", "rows"} - set(table)
    for row in table.get("rows", []):
        lacking |= {"name", "method", "phase", "sets"} - set(row)
    if lacking:
        raise InputError(f"{path}: '{sorted(lacking)[0]}' is missing")
    return table


def row_cell(table: Mapping, row: Mapping, experiments: Mapping[str, Sequence[Mapping]]) -> Cell | None:
    """Our score of a row from ``collect_results``'s experiments; None when a set of it was not scored."""
    metric, decode = table["metric"], row.get("decode", table.get("decode", "decode_beam5"))
    found = {entry["name"]: entry for entry in experiments.get(f"{row['method']}/{row['phase']}", [])}
    entries = [found.get(f"{decode}/{one}") for one in row["sets"]]
    if not all(entry and metric in entry["scores"] for entry in entries):
        return None
    scores = [entry["scores"][metric] for entry in entries]
    controls = [(entry["shuffled"] or {}).get(metric, {}).get("score") for entry in entries]
    return Cell(
        sum(score["score"] for score in scores) / len(scores),
        tuple(scores[0]["ci95"]) if len(scores) == 1 and "ci95" in scores[0] else None,
        None if None in controls else sum(controls) / len(controls),
    )


def agreement(published: Sequence[float], ours: Sequence[Cell]) -> str:
    """One sentence: in how many pairs of rows our order is the published one, and how many intervals part them."""
    same = apart = pairs = 0
    for (p, a), (q, b) in combinations(zip(published, ours, strict=True), 2):
        if p == q:
            continue
        pairs += 1
        if (p < q) == (a.score < b.score):
            same += 1
            low, high = sorted((a, b), key=lambda cell: cell.score)
            apart += bool(low.interval and high.interval and low.interval[1] < high.interval[0])
    if not pairs:
        return "No two rows with published numbers were run."
    return (
        f"The published order holds in {same} of {pairs} pairs of rows; "
        f"in {apart} of them the intervals do not overlap."
    )


def render_table(table: Mapping, experiments: Mapping[str, Sequence[Mapping]]) -> list[str]:
    """Markdown lines: heading, rows (published, ours with interval, control, experiment), agreement, note."""
    lines = [f"### {table['title']}", "", f"| | published | here, {table['metric']} | control | experiment |"]
    lines.append("| --- | ---: | ---: | ---: | --- |")
    both = []
    for row in table["rows"]:
        cell, published = row_cell(table, row, experiments), row.get("published")
        if cell and published is not None:
            both.append((published, cell))
        ours, control = "not run", ""
        if cell:
            interval = " [{:.1f}, {:.1f}]".format(*cell.interval) if cell.interval else ""
            ours, control = f"{cell.score:.1f}{interval}", "" if cell.control is None else f"{cell.control:.1f}"
        known = "–" if published is None else f"{published:.1f}"
        lines.append(f"| {row['name']} | {known} | {ours} | {control or '–'} | {row['method']}/{row['phase']} |")
    sentences = [agreement([p for p, _ in both], [c for _, c in both])] if len(both) > 1 else []
    sentences += [table["note"].strip()] if table.get("note") else []
    return [*lines, "", *([" ".join(sentences), ""] if sentences else [])]
