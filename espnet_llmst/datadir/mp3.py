"""Exact lengths of MP3 files: libsndfile guesses, and then cuts, those that do not state theirs."""

import io
from collections.abc import Iterator
from pathlib import Path

# kbit/s of layer III by the header's bitrate index: MPEG 1, and MPEG 2 / 2.5.
_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
_KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
_RATES = (44100, 48000, 32000)  # of MPEG 1; a half for MPEG 2, a quarter for MPEG 2.5
_LENGTH_TAGS = (b"Xing", b"Info", b"VBRI")


def with_length_header(path: str | Path) -> str | io.BytesIO:
    """What to open in place of `path`: the path itself, or an MP3 without stated length completed by one."""
    with open(path, "rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3":
            file.seek(_after_id3(head))
        elif _frame_bytes(head) == 0:
            return str(path)
        first = file.read(4096)
        if any(tag in first for tag in _LENGTH_TAGS):
            return str(path)
    data = Path(path).read_bytes()
    start = _after_id3(data) if data[:3] == b"ID3" else 0
    second = start + _frame_bytes(data[start : start + 4])
    if second == start or second + 4 < len(data) and not _frame_bytes(data[second : second + 4]):
        return str(path)  # something else behind an ID3 tag, or by chance
    frames = sum(1 for _ in _frames(data, start))
    return io.BytesIO(_info_frame(data[start : start + 4], frames) + data[start:])


def _after_id3(head: bytes) -> int:
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def _frame_bytes(head: bytes) -> int:
    """Size of the layer III frame that starts here, 0 where none does."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0
    version = head[1] >> 3 & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    kbits = (_KBITS_1 if version == 3 else _KBITS_2)[head[2] >> 4]
    rate_index = head[2] >> 2 & 3
    if version == 1 or rate_index == 3 or kbits == 0:
        return 0
    rate = _RATES[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    return (144 if version == 3 else 72) * 1000 * kbits // rate + (head[2] >> 1 & 1)


def _frames(data: bytes, position: int) -> Iterator[int]:
    """Positions of the frames; garbage between them is skipped."""
    while position + 4 <= len(data):
        size = _frame_bytes(data[position : position + 4])
        if size:
            yield position
            position += size
        else:
            position = data.find(b"\xff", position + 1)
            if position < 0:
                return


def _info_frame(head: bytes, frames: int) -> bytes:
    """A silent frame like `head`'s that says how many frames follow."""
    # Without checksum and padding, and of a bitrate that leaves room for the tag.
    head = bytes([0xFF, head[1] | 1, 0x90 | head[2] & 0x0C, head[3]])
    mono, first_version = head[3] >> 6 == 3, head[1] >> 3 & 3 == 3
    side_info = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[first_version, mono]
    tag = head + bytes(side_info) + b"Info" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
    return tag.ljust(_frame_bytes(head), b"\0")
