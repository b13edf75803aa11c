"""The recordings of FLEURS: where they lie, and unpacking them from tar.gz archives and parquet files.

What is unpacked becomes <audio_dir>/<lang>/<split>/<number>.flac, 16 bit, which formatting (stage 3) takes as it is:
the recordings are there once, whatever the number of target languages. What is no 16 kHz mono audio stays as it was.
"""

import fcntl
import gzip
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fleurs_tables import SPLIT_NAMES, damaged, open_parquet, parquet_name, parquet_shards, refuse_pointer

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.audio import AudioError, open_audio, read_mono, write_audio
from espnet_llmst.datadir.jobs import run_jobs

RATE = 16000
_FILES_PER_PROCESS = 500  # fewer are not worth the start of a process


def find_audio(dirs: list[Path], split: str, files: set[str], unpacked: Path) -> list[Path]:
    """Where a split's audio is: a folder, a tar.gz archive, or parquet files.

    A folder counts first if it is complete: an archive may have been unpacked in part.

    Args:
        dirs: of the language (`language_dirs`).
        split: train, dev or test.
        files: names of the recordings.
        unpacked: where an archive was unpacked to; it serves alone when the archive is gone.
    Raises:
        InputError: there is none.
    """
    names = SPLIT_NAMES[split]
    places = [folder / part for folder in dirs for part in ("audio", "")]
    folders = [place / sub for place in places for name in names for sub in (name, f"{name}/{name}")]
    folders = [folder for folder in folders if folder.is_dir() and not files.isdisjoint(os.listdir(folder))]
    for folder in folders:
        if files.issubset(os.listdir(folder)):
            return [folder]
    for archive in (place / f"{name}.tar.gz" for place in places for name in names):
        if archive.is_file():
            return [archive]
    found = parquet_shards(dirs, split) or folders[:1] or [unpacked] * unpacked.is_dir()
    if not found:
        raise InputError(f"{dirs[0]}/audio/{split}.tar.gz: missing, and so is its unpacked folder; get one of them")
    return found


def unpack(sources: list[Path], folder: Path, nj: int) -> Path:
    """The folder with the recordings of an archive or of parquet files; a folder is used where it is.

    What was unpacked of the same files is taken as it is (see `forget`).

    Raises:
        InputError: a truncated archive, a full disk.
    """
    if sources[0].is_dir():
        return sources[0]
    with _new_folder(folder, sources) as new:
        if new:
            for path in sources:
                print(f"unpacking {path}", flush=True)
                refuse_pointer(path)
                try:
                    _unpack_parquet(path, new) if path.suffix == ".parquet" else _unpack_archive(path, new)
                except OSError as error:
                    if error.errno is None:  # not of the operating system
                        raise damaged(path, error) from None
                    raise InputError(f"{path}: cannot be unpacked to {new} ({error.strerror}); make room") from None
            wavs = sorted(str(new / name) for name in os.listdir(new))
            for _ in run_jobs(to_flac, wavs, processes(nj, len(wavs)), str(folder)):
                pass
    return folder


def processes(nj: int, files: int) -> int:
    """How many of `nj` processes so many files are worth."""
    return min(nj, 1 + files // _FILES_PER_PROCESS)


def forget(folder: Path) -> None:
    """Have a folder unpacked anew."""
    (folder / ".source").unlink(missing_ok=True)


@contextmanager
def _new_folder(folder: Path, sources: list[Path]) -> Iterator[Path | None]:
    """A folder to fill that gets its name only when complete; None where it is there, made of the same files."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    mark, stamp = folder / ".source", json.dumps(stats)
    temporary = folder.with_name(f".{folder.name}.tmp")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs may want the same language
        if mark.is_file() and mark.read_text() == stamp:
            yield None
            return
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
        temporary.mkdir()
        try:
            yield temporary
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        (temporary / ".source").write_text(stamp)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)


def _unpack_archive(archive: Path, folder: Path) -> None:
    """Write every wav of an archive under its bare name: nothing can end up outside the folder."""
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as members:
            for member in members:
                name = PurePosixPath(member.name).name
                if member.isfile() and name.endswith(".wav") and not name.startswith("."):
                    with members.extractfile(member) as source, open(folder / name, "wb") as file:
                        shutil.copyfileobj(source, file)
            while stream.read(1 << 20):  # tarfile takes a cut for the end; gzip knows better
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise damaged(archive, error) from None


def _unpack_parquet(path: Path, folder: Path) -> None:
    from pyarrow import ArrowException

    shard = open_parquet(path)
    columns = [name for name in ("audio", "path") if name in shard.schema_arrow.names]
    try:
        for batch in shard.iter_batches(batch_size=64, columns=columns):
            for row in batch.to_pylist():
                name, data = parquet_name(row), (row["audio"] or {}).get("bytes")
                if name and data is not None:
                    (folder / name).write_bytes(data)
    except ArrowException as error:
        raise damaged(path, error) from None


def to_flac(path: str) -> None:
    """Replace 16 kHz mono audio (16 bit, 32 bit or float) by 16-bit FLAC; leave anything else for others to judge."""
    try:
        with open_audio(path) as file:
            if (file.samplerate, file.channels) != (RATE, 1) or file.frames == 0:
                return
            samples = read_mono(file)
    except AudioError:
        return
    write_audio(Path(path).with_suffix(".flac"), samples, RATE, f"FLEURS {Path(path).name}")
    os.unlink(path)
