"""What a table of conf/paper needs run, what of it is there, and the table with signatures, commands and tests.

The recipe's `llmst.sh` does the work: every `Run` is one call of it.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from espnet_llmst.cli import InputError, read_yaml
from espnet_llmst.provenance import content_hash
from espnet_llmst.scoring.compare import paired_test
from espnet_llmst.scoring.decodes import Sources, load_decode
from espnet_llmst.scoring.metrics import ALL_METRICS
from espnet_llmst.scoring.score import git_commit
from espnet_llmst.scoring.tables import (
    NONE,
    Place,
    closing_lines,
    decode_of,
    heading,
    metric_of,
    phase_settings,
    place_cell,
    row_lines,
    steps_of,
)

TRAINED = 6  # stage after which a phase is trained


class Run(NamedTuple):
    """One call of the recipe for a row: its phase trained, or trained, decoded and scored."""

    row: str
    method: str
    phase: str
    folder: Path
    decodes: bool
    options: tuple[str, ...]


class Settings(NamedTuple):
    """What the command line says beside the table: see ``llmst_table --help``."""

    conf: Path = Path("conf")
    expdir: Path = Path("exp")
    train_args: str = ""
    decode_suffix: str = ""
    stage: int = 1
    stop_stage: int = 8


def choose_rows(table: Mapping, wanted: Sequence[str], name: str) -> list[dict]:
    """The rows to run: all that are ours, or those named by their id or method.

    Raises:
        InputError: there is no such row, or it is another system's.
    """
    ours = [row for row in table["rows"] if row["method"]]
    known = {row["id"] for row in ours} | {row["method"] for row in ours}
    unknown = [one for one in wanted if one not in known]
    if unknown:
        there = " ".join(row["id"] for row in ours)
        raise InputError(f"table {name} has no row '{unknown[0]}' of ours; there are: {there}")
    return [row for row in ours if not wanted or {row["id"], row["method"]} & set(wanted)]


def split_sets(places: Sequence[Place]) -> tuple[list[str], list[str]]:
    """Test splits and directions of the sets of a row, e.g. ``test.fr-en (asr)``."""
    names = [one.split()[0].partition(".") for place in places for one in place.sets]
    return list(dict.fromkeys(n[0] for n in names)), list(dict.fromkeys(n[2] for n in names))


def row_runs(table: Mapping, row: Mapping, settings: Settings) -> list[Run]:
    """The runs that a row needs, in order: of every seed the phases that it starts from, then its own."""
    runs = []
    splits, directions = split_sets(row["places"])
    for seed, experiment in row["experiments"]:
        folder = settings.expdir.joinpath(*experiment.split("/")[:-2])
        seed_args = f"--seed {seed}" if folder != settings.expdir and seed is not None else ""
        train_args = " ".join(filter(None, (settings.train_args, row.get("overrides"), seed_args)))
        steps = steps_of(settings.conf, row["method"], row["phase"])
        for method, phase in steps if settings.stage <= TRAINED else steps[-1:]:
            last = (method, phase) == steps[-1]
            options = {"method": method, "phase": phase, "expdir": folder, "directions": " ".join(directions)}
            options |= {"test_sets": " ".join(splits), "train_args": train_args}
            if last:
                options |= {"inference_config": settings.conf / f"{decode_of(table, row)}.yaml", "inference_task": ""}
            else:
                options["stop_stage"] = min(TRAINED, settings.stop_stage)
            words = tuple(f"--{key}={value}" for key, value in options.items())
            runs.append(Run(row["id"], method, phase, folder / method / phase, last, words))
    return runs


def table_runs(table: Mapping, rows: Sequence[Mapping], settings: Settings) -> list[Run]:
    """The runs of several rows; a phase that several of them start from is trained once."""
    seen, runs = set(), []
    for run in (run for row in rows for run in row_runs(table, row, settings)):
        if run.options not in seen:
            runs.append(run)
            seen.add(run.options)
    return runs


def command_of(run: Run, words: Sequence[str] = ()) -> str:
    """The run as a user would type it, with other ``words``: options that change nothing are left out."""
    words = list(words)
    for option in run.options:
        key, _, value = option.partition("=")
        if value and (key, value) != ("--expdir", "exp"):
            words += [key, value]
    return shlex.join(["./run.sh", *words])


def phase_state(folder: Path, config: Path) -> str:
    """Whether a phase is trained, by the marks that stage 6 leaves: the second begins with the hash of its YAML."""
    if read_yaml(config).get("trainable") == []:
        return "nothing to train"
    begun = folder / ".started"
    if begun.exists() and not begun.read_text(encoding="utf-8").startswith(content_hash(config)):
        return "its YAML has changed since it was begun, will be refused"
    if (folder / ".done").exists():
        return "trained"
    return "begun, goes on" if begun.exists() else "to train"


def gpu_memory(config: Path) -> str:
    """Memory that training a phase takes; unknown where a model that the recipe makes is still missing."""
    from espnet_llmst.summary import build_empty, memory_of, read_phase

    args = read_phase(config)
    try:
        memory = memory_of(build_empty(args), args.decoder_conf.get("quantize"))
    except InputError as error:
        return f"unknown ({str(error).split(':')[0]} is not there yet)"
    return f"{sum(memory[key] for key in ('weights', 'gradients', 'optimizer')) / 1e9:.2f} GB and activations"


def plan_lines(
    table: Mapping, rows: Sequence[Mapping], experiments: Mapping, settings: Settings, words: Sequence[str] = ()
) -> Iterator[str]:
    """What would be run: of each row its phases, its decodes, and the commands with the user's other ``words``."""
    memory: dict[Path, str] = {}
    yield table["title"]
    for row in table["rows"]:
        if not row["method"]:
            yield f"{row['name']}: {_aim(row)}"
    for row in rows:
        yield ""
        yield f"{row['id']}: {row['name']}: {_aim(row)}"
        for run in row_runs(table, row, settings):
            config = settings.conf / run.method / f"{run.phase}.yaml"
            if config not in memory:
                memory[config] = gpu_memory(config)
            yield f"  phase   {run.folder}: {phase_state(run.folder, config)}; GPU memory: {memory[config]}"
            if run.decodes:
                yield from _decode_lines(table, row, run, experiments, settings)
            yield f"  command {command_of(run, words)}"


def _aim(row: Mapping) -> str:
    known = [f"{place.column} {place.published}".strip() for place in row["places"] if place.published is not None]
    return f"published {', '.join(known) or NONE}"


def _decode_lines(table, row, run: Run, experiments: Mapping, settings: Settings) -> Iterator[str]:
    """The sets in the order of the table, those of one state together."""
    decode = decode_of(table, row, settings.decode_suffix)
    experiment = run.folder.relative_to(settings.expdir).as_posix()
    entries = {entry["name"]: entry for entry in experiments.get(experiment, [])}
    states: dict[str, list[str]] = {}
    for one in dict.fromkeys(one for place in row["places"] for one in place.sets):
        entry = entries.get(f"{decode}/{one}")
        states.setdefault("to decode" if entry is None else entry.get("stale") or "scored", []).append(one)
    for state, sets in states.items():
        names = sets if len(sets) < 4 else [f"{len(sets)} sets, {sets[0]} to {sets[-1]}"]
        for name in names:
            yield f"  decode  {run.folder / decode}/{name}: {state}"


def _score_file(expdir: Path, experiment: str, decode: str, one: str) -> Path:
    name, _, suffix = one.partition(" ")
    return expdir / experiment / decode / name / f"scores{suffix.replace('(', '_').rstrip(')')}.json"


def paired_p(table: Mapping, above: Mapping, row: Mapping, settings: Settings) -> str:
    """Chance that a row and the one above it are equal, of each seed of both: the larger p of sacreBLEU's paired tests.

    Only for rows of one and the same set that a metric of sacreBLEU or a word error rate scores as a whole.
    """
    metric, place = metric_of(table, row), row["places"][0]
    comparable = len(row["places"]) == len(place.sets) == 1 and above["places"][0].sets == place.sets
    if not comparable or metric not in ALL_METRICS or metric != metric_of(table, above) or row.get("bucket"):
        return NONE
    chances = []
    ours = {_seed_folder(where): where for _, where in row["experiments"]}
    pairs = [(first, ours[_seed_folder(first)]) for _, first in above["experiments"] if _seed_folder(first) in ours]
    for first, second in pairs:
        files = [
            _score_file(settings.expdir, where, decode_of(table, one, settings.decode_suffix), place.sets[0])
            for where, one in ((first, above), (second, row))
        ]
        a, b = (load_decode(file, Sources()) for file in files)
        try:
            found = paired_test(metric, (a.hyps, b.hyps), a.refs, a.tgt_lang, tokenize=a.tokenize)
        except InputError:  # no test for this metric
            return NONE
        chances.append(max(found["p_bootstrap"] or 1.0, found["p_randomisation"] or 1.0))
    return " ".join(f"{chance:.3f}" for chance in chances) or NONE


def _seed_folder(experiment: str) -> str:
    """The folder of a seed other than the YAML's, in which an experiment lies; empty for the YAML's."""
    first = experiment.split("/")[0]
    return first if re.fullmatch(r"seed\d+", first) else ""


def _is_complete(table: Mapping, row: Mapping, experiments: Mapping, suffix: str) -> bool:
    cells = [place_cell(table, row, place, experiments, suffix) for place in row["places"]]
    return bool(row["method"]) and all(cell and len(cell.seeds) == len(row["experiments"]) for cell in cells)


def render_full(table: Mapping, experiments: Mapping, settings: Settings, command: str) -> str:
    """The table as Markdown: published, ours, difference, test against the row above, control, command; signatures.

    Args:
        table: of ``load_table``; experiments: of ``collect_results``.
        command: what runs the whole table; a row's own adds ``--rows <id>`` to it.
    """
    suffix, above, signatures = settings.decode_suffix, None, {}
    lines = [f"# {table['title']}", ""]
    lines.append(f"| | published | {heading(table)} | difference | p, row above | control | command |")
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for row in table["rows"]:
        complete = _is_complete(table, row, experiments, suffix)
        p = paired_p(table, above, row, settings) if complete and above else NONE
        above = row if complete else None
        own = f"`{command} --rows {row['id']}`" if row["method"] else NONE
        for cell, texts in row_lines(table, row, experiments, suffix):
            lines.append(f"| {' | '.join([*texts[:4], p, texts[4], own])} |")
            for signature in cell.signatures if cell else ():
                signatures.setdefault(signature, []).append(row["name"])
    lines += ["", *closing_lines(table, experiments, suffix)]
    everywhere = len(signatures) == 1
    for signature, names in signatures.items():
        lines.append(f"- `{signature}`" + ("" if everywhere else f": {', '.join(dict.fromkeys(names))}"))
    lines += [""] if signatures else []
    lines += [f"{seed_sentence(settings.conf, table['rows'])} Written at commit `{git_commit() or 'not in git'}`."]
    lines += ["Every decode's own commit and command are in RESULTS.md, which stage 8 writes."]
    return "\n".join(lines) + "\n"


def seed_sentence(conf: Path, rows: Sequence[Mapping]) -> str:
    """Which seeds the rows of a table were trained with."""
    seeds = {tuple(row["seeds"]) for row in rows if row["method"]}
    own = {phase_settings(conf, row["method"], row["phase"]).get("seed") for row in rows if row["method"]}
    if seeds == {()}:
        return f"Seed of training: {', '.join(map(str, sorted(own - {None}))) or 'none'} (the YAML's)."
    return "Seeds of training: " + "; ".join(" ".join(map(str, one)) or "the YAML's" for one in sorted(seeds)) + "."
