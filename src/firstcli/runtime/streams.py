"""Standard output and error that no encoding and no closed pipe can stop."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ERRORS = "firstcli.closest"
_CLOSEST = {
    **{"→": "->", "↑": "^", "↓": "v", "…": "...", "–": "-", "±": "+-", "·": "."},
    "✓": "ok",
}


def make_tolerant() -> None:
    """Replace the standard streams, so that a finished job never ends in an output error.

    Characters that the encoding lacks are written as their closest equivalent. Output into a
    closed pipe, such as `first report | head`, is discarded, and the work goes on. Streams that are
    not files, as in notebooks and tests, stay as they are.
    """
    codecs.register_error(_ERRORS, _closest)
    sys.stdout = _tolerant(sys.stdout)
    sys.stderr = _tolerant(sys.stderr)


def _tolerant(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    raw = getattr(stream.buffer, "raw", stream.buffer)  # with `python -u` there is no buffer
    if type(raw) is not io.FileIO:  # a Windows console
        stream.reconfigure(errors=_ERRORS)
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Discarding(raw.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=_ERRORS,
        line_buffering=stream.line_buffering or stream.write_through,
    )


class _Discarding(io.FileIO):
    """A file that takes everything, even after its reader has gone."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(memoryview(data).cast("B"))


def _closest(error: UnicodeError) -> tuple[str, int]:
    """Return text that replaces the characters that cannot be encoded, as codecs expect."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(map(_ascii, text)), error.end


def _ascii(character: str) -> str:
    decomposed = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _CLOSEST.get(character) or decomposed or "?"
