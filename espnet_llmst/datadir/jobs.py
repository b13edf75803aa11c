"""Long work over a data directory: parallel, and done once."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    pool = ProcessPoolExecutor(nj, mp_context=context, initializer=_begin, initargs=(os.getpid(),))
    try:
        results = pool.map(function, jobs, chunksize=chunk)
        yield from tqdm(results, desc=what, total=len(jobs), disable=None)
    except BrokenProcessPool:
        raise InputError(
            f"{what}: a process was killed (out of memory?); run again with a smaller --nj, it continues"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for jobs for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def file_stamp(path: str | Path) -> list[int] | None:
    """Size and time of a file; None where there is none."""
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def table_stamps(data_dir: str | Path) -> dict[str, list[int] | None]:
    """Size and time of every table of a directory, to be taken before they are read: a part of what work depends on."""
    return {name: file_stamp(Path(data_dir) / name) for name in table_names(data_dir)}


def finished_summary(out_dir: str | Path, settings: dict) -> dict | None:
    """The summary in out_dir/.done if made with these settings, with its tables there and lost files as then."""
    try:
        done = json.loads((Path(out_dir) / ".done").read_text(encoding="utf-8"))
        same = done["settings"] == settings and done["tables"] == table_names(out_dir)
        same = same and all(file_stamp(path) == stamp for path, stamp in done["lost"].items())
        return done["summary"] if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def mark_finished(out_dir: str | Path, settings: dict, summary: dict, lost: Iterable[str | Path] = ()) -> None:
    """Write out_dir/.done, to be called last.

    Args:
        settings: all that the result depends on, as JSON can hold it; with the `table_stamps` of the input.
        lost: files that could not be used; when one changes, the work is to be done again.
    """
    with atomic_write(Path(out_dir) / ".done") as file:
        stamps = {str(path): file_stamp(path) for path in lost}
        done = {"settings": settings, "tables": table_names(out_dir), "lost": stamps, "summary": summary}
        json.dump(done, file, indent=1, sort_keys=True)
        file.write("\n")
