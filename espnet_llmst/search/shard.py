"""What a decoding job has finished, on disk as it finishes: a killed job goes on where it was."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from espnet_llmst.search.hypothesis import Hypothesis

SYNC_SECONDS = 2.0


class Shard:
    """A file of one line for each finished utterance, after a line with the decode's settings.

    Args:
        path: of the file; it is made when the first utterance is added.
        settings: of the decode; what was finished with other ones is forgotten.
    """

    def __init__(self, path: Path, settings: dict) -> None:
        self.path, self.settings = path, settings
        self.nbest: dict[str, list[Hypothesis]] = {}
        self.heard: dict[str, str] = {}
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
        if entry["heard"] is not None:
            self.heard[entry["utt"]] = entry["heard"]

    @contextmanager
    def writing(self) -> Iterator["Shard"]:
        """While open, ``add`` appends, which a kill of the process does not undo; every few seconds, and at the end,
        it is on the disk for certain."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as self.file:
            self.file.truncate(self.size)
            if not self.size:
                self._write(self.settings)
            self.synced = time.monotonic()
            try:
                yield self
            finally:
                self._sync()

    def add(self, utt: str, nbest: list[Hypothesis], heard: str | None) -> None:
        """Keep a finished utterance, and what a cascade's recogniser heard."""
        entry = {"utt": utt, "nbest": [asdict(hypothesis) for hypothesis in nbest], "heard": heard}
        self._take(entry)
        self._write(entry)
        if time.monotonic() - self.synced > SYNC_SECONDS:
            self._sync()

    def _write(self, entry: dict) -> None:
        self.file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")

    def _sync(self) -> None:
        os.fsync(self.file.fileno())
        self.synced = time.monotonic()
