"""A paper's table beside our own scores: rows from YAML, published numbers, and how often the order agrees.

A row is a phase of a method, its sets, and the published number. With seeds, or with overrides of the training
options, a row's experiment lies in a folder of its own below the experiment directory::

    exp/<method>/<phase>             as the YAML says
    exp/seed2/<method>/<phase>       the same with seed 2; a seed that the YAML has itself is the one above
    exp/<overrides>/<method>/<phase>
"""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from espnet_llmst.cli import InputError, read_yaml
from espnet_llmst.scoring.metrics import ALL_METRICS

KEYS = {"title", "metric", "decode", "rows", "note", "columns", "seeds", "tolerance", "other_corpus"}
ROW_KEYS = {
    *("name", "published", "method", "phase", "sets", "decode"),
    *("metric", "bucket", "overrides", "seeds", "tolerance"),
}
DECODE = "decode_beam5"
SPEED = "seconds per 1000"  # a metric that no score file has: decoding time of 1000 utterances
NONE = "–"


class Place(NamedTuple):
    """One number of a row: the column it stands in (empty in a table of one), its sets, what was published."""

    column: str
    sets: list[str]
    published: float | None


class Cell(NamedTuple):
    """Our score at one place: the mean over sets and seeds.

    ``interval`` when there is one set and one seed, the control's mean when all sets have one, the score of each
    seed, and the signatures.
    """

    score: float
    interval: tuple[float, float] | None
    control: float | None
    seeds: tuple[float, ...] = ()
    signatures: tuple[str, ...] = ()


def slug(text: str) -> str:
    """A name without blanks, by which ``--rows`` knows a row."""
    return re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_")


def load_table(path: str | Path, seeds: Sequence[int] | None = None) -> dict:
    """Read ``conf/paper/<table>.yaml``.

    ``title``, ``metric`` (a name in scores.json, or `SPEED`), ``decode`` (name of the decoding YAML, for all rows or
    one), ``columns`` (label -> set or sets, for a table of several), ``seeds``, ``tolerance`` (difference from the
    published number that counts as the same), ``other_corpus`` (true: what was published is of another test set, so
    that only the order of the rows can be compared) and ``rows``: name, published (a number or null; with columns one
    for each label), method (null: a system that is not ours) and phase, sets (averaged; not with columns), bucket (of
    duration, as scores.json names it), overrides (options of llmst_train).

    Args:
        path: of the YAML; the methods are looked for beside its folder.
        seeds: in place of the table's own.

    Returns:
        The table; each row also has ``id``, ``places`` and ``experiments`` (seed or None, folder below exp).

    Raises:
        InputError: unknown or missing keys, two rows of one name, a method or phase that is not there.
    """
    path = Path(path)
    table = read_yaml(path)
    _check_keys(path, table)
    for row in table["rows"]:
        row["id"], row["places"] = slug(row["name"]), _places(path, table, row)
        row["seeds"] = list(seeds or row.get("seeds") or table.get("seeds") or [])
        row["experiments"] = []
        if row["method"]:
            if phase_settings(path.parent.parent, row["method"], row["phase"]).get("trainable") == []:
                row["seeds"] = []  # nothing to draw
            row["experiments"] = _experiments(path.parent.parent, row)
    ids = [row["id"] for row in table["rows"]]
    double = next((one for one in ids if ids.count(one) > 1), None)
    if double:
        raise InputError(f"{path}: two rows are called '{double}'; give each a name of its own")
    return table


def _check_keys(path: Path, table: Mapping) -> None:
    rows = table.get("rows", [])
    for what, content, keys in [("table", table, KEYS), *(("row", row, ROW_KEYS) for row in rows)]:
        unknown = set(content) - keys
        if unknown:
            known = ", ".join(sorted(keys))
            raise InputError(f"{path}: unknown key '{sorted(unknown)[0]}' of a {what}; known: {known}")
    lacking = {"title", "metric", "rows"} - set(table)
    for row in rows:
        needed = {"name", "method"} if row.get("method", 0) is None else {"name", "method", "phase", "sets"}
        lacking |= needed - set(row) - ({"sets"} if "columns" in table else set())
    if lacking:
        raise InputError(f"{path}: '{sorted(lacking)[0]}' is missing")
    for metric in [table["metric"], *(row["metric"] for row in rows if "metric" in row)]:
        if metric not in (*ALL_METRICS, SPEED):
            raise InputError(f"{path}: unknown metric '{metric}'; known: {', '.join([*ALL_METRICS, SPEED])}")


def _places(path: Path, table: Mapping, row: Mapping) -> list[Place]:
    published = row.get("published")
    if "columns" not in table:
        return [Place("", list(row.get("sets", [])), published)]
    unknown = set(published or {}) - set(table["columns"])
    if unknown:
        raise InputError(f"{path}: row {row['name']}: '{sorted(unknown)[0]}' is no column of the table")
    places = [Place(label, _flat(sets), (published or {}).get(label)) for label, sets in table["columns"].items()]
    return [place for place in places if row["method"] or place.published is not None]


def _flat(sets: str | list) -> list[str]:
    """One set, a list of sets, or a list of lists (a mean over other columns)."""
    return [sets] if isinstance(sets, str) else [one for part in sets for one in _flat(part)]


def _experiments(conf: Path, row: Mapping) -> list[tuple[int | None, str]]:
    """Seed and folder of each experiment of a row."""
    own = {phase_settings(conf, *step).get("seed") for step in steps_of(conf, row["method"], row["phase"])}
    overrides = slug(row["overrides"]) if row.get("overrides") else ""
    found = []
    for seed in row["seeds"] or [None]:
        folder = "" if seed is None or own == {seed} else f"seed{seed}"
        found.append((seed, "/".join(filter(None, (folder, overrides, row["method"], row["phase"])))))
    return found


def phase_settings(conf: Path, method: str, phase: str) -> dict:
    """The YAML of a phase.

    Raises:
        InputError: there is none.
    """
    path = conf / method / f"{phase}.yaml"
    if not path.is_file():
        raise InputError(f"{path}: no such phase, which a table of conf/paper names; correct its method or phase")
    return read_yaml(path)


def steps_of(conf: Path, method: str, phase: str) -> list[tuple[str, str]]:
    """The phase and those before it that it starts from, in order, as (method, phase); also of other methods."""
    before = phase_settings(conf, method, phase).get("init_from")
    if before == "previous":
        names = sorted(path.stem for path in (conf / method).glob("[0-9]*.yaml"))
        if names.index(phase) == 0:
            raise InputError(f"{conf / method / phase}.yaml: init_from: previous, but there is no earlier phase")
        before = f"exp/{method}/{names[names.index(phase) - 1]}/"
    parts = str(before or "").split("/")
    if len(parts) < 4 or parts[0] != "exp" or not (conf / parts[1] / f"{parts[2]}.yaml").is_file():
        return [(method, phase)]
    return [*steps_of(conf, parts[1], parts[2]), (method, phase)]


def decode_of(table: Mapping, row: Mapping, suffix: str = "") -> str:
    """Folder of a row's decode: the name of its YAML, and ``suffix`` for options of the command line."""
    return (row.get("decode") or table.get("decode") or DECODE) + suffix


def metric_of(table: Mapping, row: Mapping) -> str:
    return row.get("metric") or table["metric"]


def _value(entry: Mapping | None, metric: str, bucket: str | None) -> dict | None:
    """``score`` and perhaps ``ci95`` and ``signature`` of a decode, or of one of its buckets."""
    scores = (entry or {}).get("scores", {})
    if metric == SPEED:
        known = scores.get("n") and scores.get("decode_seconds") is not None
        return {"score": 1000 * scores["decode_seconds"] / scores["n"]} if known else None
    if bucket is None:
        return scores.get(metric)
    found = scores.get("buckets", {}).get(bucket, {})
    if metric not in found:
        return None
    kept = {"ci95": found["ci95"]} if "ci95" in found else {}
    return {"score": found[metric], "signature": scores[metric].get("signature"), **kept}


def place_cell(table: Mapping, row: Mapping, place: Place, experiments: Mapping, suffix: str = "") -> Cell | None:
    """Our score at a place from ``collect_results``'s experiments, over the seeds of which all sets were scored."""
    metric, bucket = metric_of(table, row), row.get("bucket")
    seeds, found = [], []
    for _, experiment in row["experiments"]:
        entries = {entry["name"]: entry for entry in experiments.get(experiment, [])}
        names = [f"{decode_of(table, row, suffix)}/{one}" for one in place.sets]
        values = [_value(entries.get(name), metric, bucket) for name in names]
        if all(values):
            seeds.append(mean(value["score"] for value in values))
            found += [(value, (entries[name]["shuffled"] or {})) for name, value in zip(names, values, strict=True)]
    if not seeds:
        return None
    values = [value for value, _ in found]
    controls = [None if bucket else control.get(metric, {}).get("score") for _, control in found]
    return Cell(
        mean(seeds),
        tuple(values[0]["ci95"]) if len(values) == 1 and "ci95" in values[0] else None,
        None if None in controls else mean(controls),
        tuple(seeds),
        tuple(dict.fromkeys(value["signature"] for value in values if value.get("signature"))),
    )


def is_begun(table: Mapping, experiments: Mapping) -> bool:
    """Whether anything of a table was scored."""
    return any(place_cell(table, row, place, experiments) for row in table["rows"] for place in row["places"])


def agreement(columns: Sequence[Sequence[tuple[float, Cell]]]) -> str:
    """One sentence: in how many pairs of rows our order is the published one, and how many of these are apart.

    Apart are intervals that do not overlap; of a row with three seeds or more the range of its seeds counts instead.

    Args:
        columns: for each column of a table the published and our scores of its rows.
    """
    same = apart = pairs = 0
    for (p, a), (q, b) in (pair for column in columns for pair in combinations(column, 2)):
        if p == q:
            continue
        pairs += 1
        if (p < q) == (a.score < b.score):
            same += 1
            low, high = (_extent(cell) for cell in sorted((a, b), key=lambda cell: cell.score))
            apart += bool(low and high and low[1] < high[0])
    if not pairs:
        return "No two rows with published numbers were run."
    sentence = f"The published order holds in {same} of {pairs} pairs of rows"
    cells = [cell for column in columns for _, cell in column]
    if not any(map(_extent, cells)):
        return f"{sentence}."
    seeds = " or the ranges of their seeds" if any(len(cell.seeds) > 1 for cell in cells) else ""
    return f"{sentence}; in {apart} of them the intervals{seeds} do not overlap."


def _extent(cell: Cell) -> tuple[float, float] | None:
    return (min(cell.seeds), max(cell.seeds)) if len(cell.seeds) > 2 else cell.interval


def _ours(cell: Cell, seeds: Sequence[int]) -> str:
    if len(seeds) < 2:
        return f"{cell.score:.1f}" + (" [{:.1f}, {:.1f}]".format(*cell.interval) if cell.interval else "")
    each = " ".join(f"{score:.1f}" for score in cell.seeds)
    deviation = f" ± {stdev(cell.seeds):.1f}" if len(cell.seeds) > 1 else ""
    return f"{cell.score:.1f}{deviation} ({each})" + (
        "" if len(cell.seeds) == len(seeds) else f", {len(cell.seeds)} of {len(seeds)} seeds"
    )


def _difference(cell: Cell | None, published: float | None, tolerance: float | None) -> str:
    if cell is None or published is None:
        return NONE
    text = f"{cell.score - published:+.1f}"
    if tolerance is None:
        return text
    return f"{text} ({'within' if abs(cell.score - published) <= tolerance else 'beyond'} {tolerance:g})"


def _why_none(row: Mapping, experiments: Mapping) -> str:
    entries = [entry for _, experiment in row["experiments"] for entry in experiments.get(experiment, [])]
    if any(entry.get("stale") for entry in entries):
        return "stale"
    return "not run" if row["method"] else NONE


def row_lines(table: Mapping, row: Mapping, experiments: Mapping, suffix: str = "") -> list[tuple[Cell | None, list]]:
    """Cell and printed columns (name, published, ours, difference, control) of every place of a row."""
    lines = []
    for place in row["places"]:
        cell = place_cell(table, row, place, experiments, suffix)
        name = f"{row['name']}, {place.column}" if place.column else row["name"]
        ours = _ours(cell, row["seeds"]) if cell else _why_none(row, experiments)
        control = NONE if cell is None or cell.control is None else f"{cell.control:.1f}"
        known = NONE if place.published is None else str(float(place.published))
        tolerance = row.get("tolerance", table.get("tolerance"))
        difference = NONE if table.get("other_corpus") else _difference(cell, place.published, tolerance)
        lines.append((cell, [name, known, ours, difference, control]))
    return lines


def closing_lines(table: Mapping, experiments: Mapping, suffix: str = "") -> list[str]:
    """Below a table: how far the order of the rows agrees, and its note."""
    columns: dict[tuple[str, str], list] = {}
    for row in table["rows"]:
        for place in row["places"]:
            cell = place_cell(table, row, place, experiments, suffix)
            if cell and place.published is not None:
                columns.setdefault((place.column, metric_of(table, row)), []).append((place.published, cell))
    sentences = [agreement(list(columns.values()))] if any(len(one) > 1 for one in columns.values()) else []
    sentences += [table["note"].strip()] if table.get("note") else []
    return [" ".join(sentences), ""] if sentences else []


def heading(table: Mapping) -> str:
    """What the column of our scores is called."""
    ours = [row for row in table["rows"] if row["method"]]
    kinds = dict.fromkeys("mean ± SD (each seed)" if len(row["seeds"]) > 1 else "[95 % CI]" for row in ours)
    return f"here, {' or '.join(dict.fromkeys(metric_of(table, row) for row in ours))} {' or '.join(kinds)}"


def render_table(table: Mapping, experiments: Mapping[str, Sequence[Mapping]]) -> list[str]:
    """Markdown lines: heading, rows (published, ours with interval, control, experiment), agreement, note."""
    lines = [f"### {table['title']}", "", f"| | published | {heading(table)} | difference | control | experiment |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | --- |")
    for row in table["rows"]:
        where = row["experiments"][0][1] if row["experiments"] else NONE
        lines += [f"| {' | '.join([*texts, where])} |" for _, texts in row_lines(table, row, experiments)]
    return [*lines, "", *closing_lines(table, experiments)]
