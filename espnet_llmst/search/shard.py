"""What a decoding job has finished, on disk as it finishes: a killed job goes on where it was."""

import json
import os
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from espnet_llmst.search.hypothesis import Hypothesis

SYNC_SECONDS = 2.0
FORMAT = 2  # of the file; one of another format is begun anew


class Shard:
    """A file of one line for each finished utterance, after a line with the decode's settings.

    Args:
        path: of the file; it is made when the first utterance is added.
        settings: of the decode; what was finished with other ones is forgotten.
    """

    def __init__(self, path: Path, settings: dict) -> None:
        self.path, self.settings = path, {"format": FORMAT, **settings}
        self.nbest: dict[str, list[Hypothesis]] = {}
        self.heard: dict[str, str] = {}
        self.seconds: dict[str, float] = {}  # from the result before to this one
        self.size = self._read() if path.exists() else 0

    def _read(self) -> int:
        """Take over the whole lines; returns where they end (a kill may have torn the last one)."""
        end = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                entry = json.loads(line)
                if number == 0 and entry != self.settings:
                    return 0
                if number:
                    self._take(entry)
                end += len(line)
        return end

    def _take(self, entry: dict) -> None:
        self.nbest[entry["utt"]] = [Hypothesis(**hypothesis) for hypothesis in entry["nbest"]]
        self.seconds[entry["utt"]] = entry["seconds"]
        if entry["heard"] is not None:
            self.heard[entry["utt"]] = entry["heard"]

    def keep(self, utts: Container[str]) -> None:
        """Forget, in memory, what is not of these: a job's share was another one before."""
        for table in (self.nbest, self.heard, self.seconds):
            for utt in [utt for utt in table if utt not in utts]:
                del table[utt]

    @contextmanager
    def writing(self) -> Iterator["Shard"]:
        """While open, ``add`` appends, which a kill of the process does not undo; every few seconds, and at the end,
        it is on the disk for certain."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as self.file:
            self.file.truncate(self.size)
            if not self.size:
                self._write(self.settings)
            self.synced = self.added = time.monotonic()
            try:
                yield self
            finally:
                self._sync()

    def add(self, utt: str, nbest: list[Hypothesis], heard: str | None) -> None:
        """Keep a finished utterance, and what a cascade's recogniser heard."""
        now = time.monotonic()
        entry = {"utt": utt, "nbest": [asdict(hypothesis) for hypothesis in nbest], "heard": heard}
        entry["seconds"], self.added = now - self.added, now
        self._take(entry)
        self._write(entry)
        if now - self.synced > SYNC_SECONDS:
            self._sync()

    def _write(self, entry: dict) -> None:
        self.file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")

    def _sync(self) -> None:
        os.fsync(self.file.fileno())
        self.synced = time.monotonic()
