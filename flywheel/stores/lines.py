"""Cut a stream of bytes into log lines, the same lines however the stream is divided.

A range of bytes owns the lines that *begin* in it: its reader skips the rest of a line that began
before, and reads on past the end until its own last line is whole. Only a block and one line are
held at a time, and no step looks at a byte or a line in Python where a C loop can.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from codecs import BOM_UTF8
from collections.abc import Iterator
from itertools import accumulate, compress, count
from operator import add
from typing import Protocol

from flywheel.stores import Chunk

BLOCK = 4 * 2**20
"""Bytes read at a time; about what a chunk holds."""

MAX_LINE = 32 * 2**20
"""Bytes of a line that are kept; the rest of a longer one is skipped, so it is no JSON."""

_TAIL = 256 * 2**10
"""Bytes read at a time past a range's end, where only the last line is wanted."""


class ByteStream(Protocol):
    """What is asked of an open file."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end of the file only."""
        ...

    def seek(self, offset: int, /) -> int:
        """Go to a byte; asked of seekable streams only."""
        ...

    def seekable(self) -> bool:
        """Whether `seek` works."""
        ...


def read_lines(
    file: ByteStream,
    source: str,
    start: int = 0,
    end: int = -1,
    *,
    block: int = BLOCK,
    limit: int = MAX_LINE,
) -> Iterator[Chunk]:
    """The lines that begin in bytes ``start`` to ``end``, without line breaks and blank lines.

    A carriage return before the line break stays, as JSON does not mind it; a byte order mark at
    the head of the file does not.

    Args:
        file: Just opened.
        source: What the chunks say they are from.
        start: The first byte of the range.
        end: The byte after it; -1 for the end of the file.
        block: Bytes to read at a time, at most ``limit``.
        limit: Bytes of a line to keep.
    """
    end = sys.maxsize if end < 0 else end
    # A line begins at `start` exactly if the byte before it is a line break.
    position = max(start - 1, 0)
    _go_to(file, position)
    inside, rest = start > 0, b""
    # `position` is where `rest` begins: a line whose end has not been read yet. While `inside` a
    # line of somebody else's (or the part of one beyond the limit), `rest` is empty.
    while position < end:
        wanted = end - position - len(rest)
        data = file.read(min(block, max(wanted, _TAIL, len(rest))))
        if not data:
            break
        if inside:
            skipped, line_break, data = data.partition(b"\n")
            position += len(skipped) + len(line_break)
            inside = not line_break
        lines = data.split(b"\n")
        lines[0] = rest + lines[0]
        rest = lines.pop()
        *offsets, position = map(add, accumulate(map(len, lines), initial=position), count())
        yield from _chunk(lines, offsets, source, end, limit)
        if len(rest) > limit:
            yield from _chunk([rest], [position], source, end, limit)
            position, rest, inside = position + len(rest), b"", True
    if rest:
        yield from _chunk([rest], [position], source, end, limit)


def _go_to(file: ByteStream, position: int) -> None:
    if position and file.seekable():
        file.seek(position)
        return
    while position and (data := file.read(min(position, BLOCK))):
        position -= len(data)


def _chunk(
    lines: list[bytes], offsets: list[int], source: str, end: int, limit: int
) -> Iterator[Chunk]:
    """The range's share of these lines, if it has one. Only the first can be over the limit."""
    if offsets and offsets[-1] >= end:
        own = bisect_left(offsets, end)
        lines, offsets = lines[:own], offsets[:own]
    if not lines:
        return
    lines[0] = lines[0][:limit]
    if offsets[0] == 0:
        lines[0] = lines[0].removeprefix(BOM_UTF8)
    if not all(lines) or any(map(bytes.isspace, lines)):
        filled = [bool(line.strip()) for line in lines]
        lines, offsets = list(compress(lines, filled)), list(compress(offsets, filled))
    if lines:
        yield Chunk(lines, offsets, source)
