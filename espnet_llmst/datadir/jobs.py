"""Long work over a data directory: parallel, and done once."""

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import atomic_write, table_names


def run_jobs(function: Callable, jobs: Sequence, nj: int, what: str) -> Iterator:
    """Yield function(job) of every job, in order, from `nj` processes, with a progress bar.

    Args:
        function: of a module's top level, since processes are spawned.
        jobs: one argument each; picklable.
        nj: number of processes; 1 works in this one.
        what: label of the progress bar.
    Raises:
        InputError: a process was killed.
    """
    nj = min(nj, len(jobs))
    if nj <= 1:
        yield from tqdm(map(function, jobs), desc=what, total=len(jobs), disable=None)
        return
    # Few jobs at a time keep the bar honest; many keep the processes busy.
    chunk = max(1, min(32, len(jobs) // (nj * 4)))
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(nj, mp_context=context, initializer=_ignore_interrupt)
    try:
        results = pool.map(function, jobs, chunksize=chunk)
        yield from tqdm(results, desc=what, total=len(jobs), disable=None)
    except BrokenProcessPool:
        raise InputError(
            f"{what}: a process was killed (out of memory?); run again with a smaller --nj, it continues"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides


def finished_summary(in_dir: str | Path, out_dir: str | Path, settings: dict) -> dict | None:
    """The summary in out_dir/.done if made with these settings from in_dir's present tables, else None."""
    marker = Path(out_dir) / ".done"
    try:
        done = json.loads(marker.read_text(encoding="utf-8"))
        made = marker.stat().st_mtime_ns
    except (OSError, ValueError):
        return None
    tables = table_names(in_dir)
    if done.get("settings") != settings or done.get("tables") != tables:
        return None
    if any((Path(in_dir) / name).stat().st_mtime_ns >= made for name in tables):
        return None
    return done["summary"]


def mark_finished(in_dir: str | Path, out_dir: str | Path, settings: dict, summary: dict) -> None:
    """Write out_dir/.done, to be called last."""
    with atomic_write(Path(out_dir) / ".done") as file:
        done = {"settings": settings, "tables": table_names(in_dir), "summary": summary}
        json.dump(done, file, indent=1, sort_keys=True)
        file.write("\n")
