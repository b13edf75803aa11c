"""Collect every score below an experiment directory; write RESULTS.md and the table a recipe ends with.

Layout read here::

    exp/<method>/<phase>/decode_<conf>/<set>/scores.json           the row of this decode
    exp/<method>/<phase>/decode_<conf>/<set>/scores_shuffled.json  its control: audio shuffled over the set
    exp/<method>/<phase>/decode_<conf>/<set>/scores_<other>.json   a row of its own, e.g. SRT's transcripts
    exp/foundation/<name>/eval.json                                one score, or a list, of a foundation model
"""

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import atomic_write
from espnet_llmst.scoring.metrics import ALL_METRICS
from espnet_llmst.scoring.score import environment, git_commit
from espnet_llmst.scoring.score_files import is_number, read_json, read_scores, stale_reason
from espnet_llmst.scoring.tables import is_begun, load_table, render_table

FOUNDATION = "foundation"
SHUFFLED = "scores_shuffled.json"
BLEU_CI, SHUFFLED_BLEU = "BLEU [95 % CI]", "shuffled-audio BLEU"
VERBOSE = "verbose_score"
OPTIONAL = ("missing", "BLEU char", "spBLEU", "COMET", "CER", VERBOSE)  # columns that stand only where a row fills them
COLUMNS = ("n", "missing", BLEU_CI, "BLEU lc", "BLEU char", "spBLEU", "COMET", "chrF2", "TER", "WER", "CER")
COLUMNS += (SHUFFLED_BLEU, "speech s", "RTF", VERBOSE)
TERMINAL_COLUMNS = tuple(column for column in COLUMNS if column not in ("CER", "speech s", VERBOSE))
SHORT_HEAD = {SHUFFLED_BLEU: "shuffled"}


def _natural(path: Path) -> list[list]:
    """Sort key of a path that puts phase ``10_x`` behind ``2_x``."""
    split = [re.split(r"([0-9]+)", part) for part in path.parts]  # numbers stand at the odd places
    return [[int(p) if i % 2 else p for i, p in enumerate(pieces)] for pieces in split]


def _decode_rows(folder: Path, name: str) -> list[dict]:
    """Rows of one decoded set: its own scores with the shuffled control, then any other score file.

    Of a stale decode no score is kept, only the reason.
    """
    reason = stale_reason(folder)
    if reason:
        return [{"name": name, "scores": {}, "shuffled": None, "stale": reason}]
    files = {path.name: read_scores(path) for path in sorted(folder.glob("scores*.json"))}
    shuffled, scores = files.pop(SHUFFLED, None), files.pop("scores.json", None)
    gold = _reads_gold_text(folder / "decode.json")
    rows = [{"name": name, "scores": scores or {}, "shuffled": shuffled, "gold": gold}] if scores or shuffled else []
    for file, other in files.items():
        suffix = file.removeprefix("scores").removesuffix(".json").strip("_")
        rows.append({"name": f"{name} ({suffix})", "scores": other, "shuffled": None})
    return rows


def _reads_gold_text(decode_info: Path) -> bool:
    """Whether a decode was shown the set's own transcripts: text translation, or SMT without a recogniser."""
    info = read_json(decode_info) if decode_info.exists() else {}
    return info.get("task") in ("smt", "mt") and not info.get("asr_model")


def collect_results(expdir: str | Path, methods: Sequence[str] | None = None) -> dict[str, list[dict]]:
    """Rows of every experiment below ``expdir``, the foundation models' own folder apart.

    Args:
        expdir: experiment directory of a recipe.
        methods: keep only these folders of it; None keeps all.

    Returns:
        ``<method>/<phase>`` -> rows ``{"name": "decode_<conf>/<set>", "scores": {...}, "shuffled": ...}``.

    Raises:
        InputError: no directory, a method without scores, a score file that is broken or lies elsewhere.
    """
    expdir = Path(expdir)
    if not expdir.is_dir():
        raise InputError(f"{expdir}: no such directory, give the recipe's experiments to --expdir")
    folders = {path.parent.relative_to(expdir) for path in expdir.rglob("scores*.json")}
    experiments: dict[str, list[dict]] = {}
    for folder in sorted(folders, key=_natural):
        if len(folder.parts) < 3:
            raise InputError(f"{expdir / folder}: scores must lie in <method>/<phase>/decode_<conf>/<set>")
        method = folder.parts[0]
        if method == FOUNDATION or (methods and method not in methods):
            continue
        name = "/".join(folder.parts[-2:])
        experiments.setdefault("/".join(folder.parts[:-2]), []).extend(_decode_rows(expdir / folder, name))
    absent = [method for method in methods or [] if not any(e.split("/")[0] == method for e in experiments)]
    if absent:
        raise InputError(f"{expdir / absent[0]}: no scores.json below it, decode and score this method first")
    return experiments


def collect_foundation(expdir: str | Path) -> list[dict]:
    """Scores of the foundation models that the recipe trained or checked: ``foundation/*/eval.json``.

    Raises:
        InputError: a file is broken or an entry lacks ``model``, ``metric`` or a number ``score``.
    """
    entries = []
    for path in sorted(Path(expdir).glob(f"{FOUNDATION}/*/eval.json"), key=_natural):
        content = read_json(path)
        for entry in content if isinstance(content, list) else [content]:
            if not (isinstance(entry, dict) and {"model", "metric"} <= set(entry) and is_number(entry.get("score"))):
                raise InputError(f"{path}: an entry needs model, metric and a number score, evaluate it again")
            entries.append(entry)
    return entries


def _number(value: object, digits: int) -> str:
    return f"{value:.{digits}f}" if is_number(value) else ""


def _score(scores: Mapping, name: str) -> str:
    return _number(scores.get(name, {}).get("score"), 1)


def bleu_with_interval(entry: Mapping) -> str:
    """``44.1 [43.5, 44.7]`` of one metric's entry; without ``ci95`` the score alone."""
    interval = " [{:.1f}, {:.1f}]".format(*entry["ci95"]) if "ci95" in entry else ""
    return f"{entry['score']:.1f}{interval}"


def _cells(row: Mapping) -> dict[str, str]:
    """The printed cells of one row by column; an unknown value is an empty string."""
    scores, cer = row["scores"], _score(row["scores"], "CER")
    speech, wall = scores.get("speech_seconds"), scores.get("decode_seconds")
    return {
        "n": str(scores.get("n", "")),
        BLEU_CI: bleu_with_interval(scores["BLEU"]) if "BLEU" in scores else "",
        "missing": str(scores.get("n_missing") or ""),
        VERBOSE: next((scores[name][VERBOSE] for name in ("BLEU", "WER") if VERBOSE in scores.get(name, {})), ""),
        "BLEU lc": _score(scores, "BLEU_lc"),
        "BLEU char": _score(scores, "BLEU_char"),
        "spBLEU": _score(scores, "spBLEU"),
        "COMET": _score(scores, "COMET"),
        "chrF2": _score(scores, "chrF2"),
        "TER": _score(scores, "TER"),
        "WER": _score(scores, "WER") or (cer and f"{cer} (CER)"),
        "CER": cer if "WER" in scores else "",
        SHUFFLED_BLEU: _score(row["shuffled"] or {}, "BLEU"),
        "speech s": _number(speech, 0),
        "RTF": _number(wall / speech, 3) if speech and wall is not None else "",
    }


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [
        list(head),
        ["---"] + ["---:"] * (len(head) - 1),
        *([cell or "–" for cell in row] for row in rows),
    ]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _unique(values: Sequence[object]) -> list[str]:
    return [str(value) for value in dict.fromkeys(values) if value]


def _groups(row: Mapping) -> list[str]:
    """One line with the score of each group of utterances (``--groups``), if there are any."""
    scored = []
    for group, entry in row["scores"].get("groups", {}).items():
        metric = next((name for name in ALL_METRICS if name in entry), None)
        if metric:
            scored.append(f"{group} ({entry['n']}) {bleu_with_interval({**entry, 'score': entry[metric]})} {metric}")
    return [f"- {_shown_name(row)}: {', '.join(scored)}"] if scored else []


def _provenance(rows: Sequence[Mapping]) -> list[str]:
    """Below a table: groups, the signature of every metric, the commits and the commands that gave its scores."""
    files = [scores for row in rows for scores in (row["scores"], row["shuffled"]) if scores]
    lines = [line for row in rows for line in _groups(row)]
    for name in (*ALL_METRICS, "COMET"):
        signatures = _unique([scores[name].get("signature") for scores in files if name in scores])
        lines += [f"- {name}: `{signature}`" for signature in signatures]
    lines += [f"- scored at commit `{commit}`" for commit in _unique([s.get("git_commit") for s in files])]
    commands = _unique([scores.get("command") for scores in files])
    return lines + (["", "```", *commands, "```"] if commands else [])


def _foundation_section(entries: Sequence[Mapping]) -> list[str]:
    rows = [
        [
            str(e["model"]),
            str(e.get("set", "")),
            str(e["metric"]),
            _number(e["score"], 2),
            str(e.get("n", "")),
        ]
        for e in entries
    ]
    signatures = _unique([f"{e['metric']}: `{e['signature']}`" for e in entries if e.get("signature")])
    table = _markdown_table(("model", "set", "metric", "score", "n"), rows)
    return ["## Foundation models", "", *table, "", *(f"- {line}" for line in signatures)]


def render_markdown(
    experiments: Mapping[str, Sequence[Mapping]],
    foundation: Sequence[Mapping],
    *,
    command: str,
    expdir: str,
    tables: Sequence[Mapping] = (),
) -> str:
    """The text of RESULTS.md: command, environment, papers' tables, a section per experiment, foundation models."""
    now = datetime.now().astimezone().isoformat(timespec="minutes")
    lines = ["# Results", "", f"Generated by `{command}`; run it again instead of editing this file.", ""]
    lines += ["## Environment", "", f"- date: {now}", f"- git commit: `{git_commit() or 'not in git'}`"]
    lines += [f"- {name}: {number}" for name, number in environment().items()]
    if tables:
        lines += [
            "",
            "## Tables of the papers",
            "",
            *(line for one in tables for line in render_table(one, experiments)),
        ]
    for experiment, rows in experiments.items():
        cells = [_cells(row) for row in rows]
        columns = [column for column in COLUMNS if column not in OPTIONAL or any(cell[column] for cell in cells)]
        table = [[_shown_name(row), *(cell[c] for c in columns)] for row, cell in zip(rows, cells, strict=True)]
        lines += ["", f"## {expdir.rstrip('/')}/{experiment}", ""]
        lines += [*_markdown_table(("decode/set", *columns), table), "", *_provenance(rows)]
    if foundation:
        lines += ["", *_foundation_section(foundation)]
    return "\n".join(lines).rstrip("\n") + "\n"


def write_results(
    expdir: str | Path,
    out: str | Path | None,
    *,
    command: str,
    methods: Sequence[str] | None = None,
    tables: Sequence[str | Path] = (),
) -> dict[str, list[dict]]:
    """Write RESULTS.md (unless ``out`` is None) from all below ``expdir``; returns what ``format_table`` takes.

    ``tables`` are ``conf/paper/<table>.yaml`` files; one of which no row was scored yet is left out.

    Raises:
        InputError: as ``collect_results`` and ``collect_foundation``; also when nothing was scored yet.
    """
    experiments, foundation = collect_results(expdir, methods), collect_foundation(expdir)
    if not experiments and not foundation:
        raise InputError(f"{expdir}: no scores.json below it, run stages 7 and 8 first")
    for experiment, rows in experiments.items():
        for row in rows:
            if row.get("stale"):
                print(f"{expdir}/{experiment}/{_shown_name(row)}", file=sys.stderr)
    if out is not None:
        begun = [one for one in map(load_table, tables) if is_begun(one, experiments)]
        text = render_markdown(experiments, foundation, command=command, expdir=str(expdir), tables=begun)
        with atomic_write(out) as file:
            file.write(text)
    return experiments


def _shown_name(row: Mapping) -> str:
    """A row's name with what its numbers must not be read without."""
    if row.get("stale"):
        return f"{row['name']}: stale, {row['stale']}"
    return f"{row['name']} (reads gold transcripts)" if row.get("gold") else row["name"]


def _elide(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def format_table(experiments: Mapping[str, Sequence[Mapping]], width: int = 100) -> str:
    """The score table as aligned plain text; columns that no row fills are left out.

    Args:
        experiments: what ``collect_results`` gives.
        width: characters per line; long names lose their beginning.
    """
    cells = {experiment: [_cells(row) for row in rows] for experiment, rows in experiments.items()}
    every = [cell for rows in cells.values() for cell in rows]
    heads = {c: SHORT_HEAD.get(c, c) for c in TERMINAL_COLUMNS if any(cell[c] for cell in every)}
    widths = {c: max(len(head), *(len(cell[c]) for cell in every)) for c, head in heads.items()}
    room = max(12, width - sum(size + 2 for size in widths.values()))
    names = [_shown_name(row).removeprefix("decode_") for rows in experiments.values() for row in rows]
    first = min(room, max([len("decode/set"), *(len(name) + 2 for name in names)]))

    def line(name: str, values: Mapping[str, str]) -> str:
        return (name.ljust(first) + "".join("  " + values[c].rjust(size) for c, size in widths.items())).rstrip()

    lines = [line("decode/set", heads), "-" * (first + sum(size + 2 for size in widths.values()))]
    for experiment, rows in cells.items():
        lines.append(_elide(experiment, width))
        for row, cell in zip(experiments[experiment], rows, strict=True):
            lines.append(line("  " + _elide(_shown_name(row).removeprefix("decode_"), first - 2), cell))
    return "\n".join(lines)
