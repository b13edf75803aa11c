"""SIGTERM, by which Slurm and others announce the end: taken down, to be heeded at a good moment."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_STATUS = 128 + signal.SIGTERM  # 143, as of a process that the signal ended


class Sigterm:
    """Whether the signal has come."""

    came = False


@contextmanager
def note_sigterm() -> Iterator[Sigterm]:
    """Within the block, SIGTERM is only noted."""
    sigterm = Sigterm()

    def note(*_) -> None:
        sigterm.came = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield sigterm
    finally:
        signal.signal(signal.SIGTERM, before)
