"""COMET by the `comet-score` command of Unbabel's package, which lives in an environment of its own.

The package pins older transformers and numpy than this one needs, so the two cannot share an environment.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from espnet_llmst.cli import InputError
from espnet_llmst.scoring.metrics import N_BOOTSTRAP, bootstrap_seed

DEFAULT_COMET = "Unbabel/wmt22-comet-da"
INSTALL = "python3 -m venv comet && comet/bin/pip install unbabel-comet, then --comet comet/bin/comet-score"


def comet_score(
    hyps: Sequence[str],
    ref: Sequence[str],
    sources: Sequence[str],
    *,
    command: str = "comet-score",
    model: str = DEFAULT_COMET,
    gpus: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
) -> dict:
    """The mean COMET of utterances, times 100.

    Args:
        hyps, ref, sources: hypothesis, reference and source text of each utterance, in one order.
        command: the `comet-score` program, by name or path.
        model: name on the hub, or path of a checkpoint ``.ckpt``.
        gpus: devices for it; 0: the processor.
        n_bootstrap: resamples for the confidence interval; below 2: none.

    Returns:
        ``score``, ``signature``, ``ci95`` (percentiles of the bootstrap, sacreBLEU's seed).

    Raises:
        InputError: the command is missing, fails, or does not answer as expected.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for option, texts in (("-s", sources), ("-t", hyps), ("-r", ref)):
            files[option] = Path(folder) / f"text{option}"
            # the command reads one utterance per line and would split at any Unicode line break
            files[option].write_text("".join(" ".join(text.split()) + "\n" for text in texts), encoding="utf-8")
        answer = Path(folder) / "scores.json"
        options = [part for option, path in files.items() for part in (option, str(path))]
        _run([command, *options, "--model", model, "--gpus", str(gpus), "--only_system", "--to_json", str(answer)])
        scores = _read(answer, command, len(hyps))
    seed = bootstrap_seed()
    parts = {"nrefs": 1, "bs": n_bootstrap, "seed": seed, "model": model, "comet": _version(command)}
    result = {
        "score": float(scores.mean()),
        "signature": "|".join(f"{key}:{value}" for key, value in parts.items()),
    }
    if n_bootstrap > 1:
        draws = np.random.default_rng(seed).choice(scores, size=(n_bootstrap, len(scores))).mean(1)
        result["ci95"] = [float(bound) for bound in np.percentile(draws, (2.5, 97.5))]
    return result


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"COMET: {command[0]}: {error.strerror}; install it: {INSTALL}") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").split("\n")[-1]
        raise InputError(
            f"COMET: {command[0]} failed with status {done.returncode} ({said}); its model needs the network once, "
            "or --comet_model FILE.ckpt"
        )


def _read(answer: Path, command: str, count: int) -> np.ndarray:
    try:
        (rows,) = json.loads(answer.read_text(encoding="utf-8")).values()
        scores = np.array([float(row["COMET"]) for row in rows])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"COMET: {command} wrote no scores of unbabel-comet ({error}); check --comet") from error
    if len(scores) != count:
        raise InputError(f"COMET: {command} gave {len(scores)} scores for {count} utterances; check --comet")
    return 100.0 * scores


def _version(command: str) -> str:
    """Version of unbabel-comet beside the command; ``unknown`` where that folder holds no Python."""
    code = "from importlib.metadata import version; print(version('unbabel-comet'))"
    try:
        python = Path(shutil.which(command) or command).parent / "python"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
