"""The score files of a recipe: read, and refused once something that they were made from has changed."""

import json
from collections.abc import Sequence
from os import curdir
from os.path import isabs, relpath
from pathlib import Path

from espnet_llmst.cli import InputError
from espnet_llmst.provenance import changed_input
from espnet_llmst.scoring.metrics import ALL_METRICS


def read_json(path: Path) -> object:
    """The content of a JSON file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}), remove it or make it again") from error


def is_number(value: object) -> bool:
    """Whether a value of JSON is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_scores(path: Path) -> dict:
    """A score file of llmst_score.

    Raises:
        InputError: it is something else, or a metric in it has no number.
    """
    scores = read_json(path)
    found = [scores[name] for name in ALL_METRICS if name in scores] if isinstance(scores, dict) else []
    if not found or not all(isinstance(entry, dict) and is_number(entry.get("score")) for entry in found):
        raise InputError(f"{path}: is not a score file of llmst_score, score this decode again")
    return scores


def stale_reason(folder: Path) -> str | None:
    """Why the scores of a decode no longer hold: what it was made from, or scored against, has changed since.

    Recorded paths are relative to the recipe, as the decode's own is, which tells where the recipe lies.
    """
    recipe = Path()
    for file in (folder / "shuffled/decode.json", folder / "decode.json"):
        info = read_json(file) if file.is_file() else {}
        made_as = info.get("output_dir", "")
        recipe = file.parent / relpath(curdir, made_as) if made_as and not isabs(made_as) else Path()
        changed = changed_input(info.get("inputs", {}), recipe)
        if changed:
            return f"{changed} has changed since this was decoded; run stage 7 again"
    for path in sorted(folder.glob("scores*.json")):
        changed = changed_input(read_scores(path).get("inputs", {}), recipe)
        if changed:
            return f"{changed} has changed since this was scored; run stage 8 again"
    return None


def refuse_stale(folders: Sequence[str | Path]) -> None:
    """Refuse decodes whose scores no longer hold.

    Raises:
        InputError: naming the first, what has changed, and the remedy.
    """
    for folder in map(Path, folders):
        reason = stale_reason(folder)
        if reason:
            raise InputError(f"{folder}: stale, {reason}")
