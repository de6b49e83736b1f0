"""A JSON array read value by value, through a window that moves over the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

CHUNK = 1 << 16  # characters read at a time
_BLANKS = re.compile(r"[ \t\n\r]*")
_AFTER = (",", "]", " ", "\t", "\n", "\r")
_DECODER = json.JSONDecoder()


class Malformed(Exception):
    """What is no JSON, and where: line and column from 1 on."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, line, column


class Window:
    """The part of a file that is looked at; what was taken is forgotten."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._ended = False
        self.line = 1
        """The line in which the window begins."""
        self._column = 0  # characters of that line before the window

    def peek(self) -> str:
        """Return the next character that is no blank, or nothing at the file's end."""
        while True:
            self._at = _BLANKS.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._move()

    def array(self) -> Iterator[Any]:
        """Yield the values of the array that begins here and ends with the file.

        Raises:
            Malformed: this is no such array.
        """
        self._take("[", "Expecting value")
        if self.peek() != "]":
            yield self._value()
            while self.peek() != "]":
                self._take(",", "Expecting ',' delimiter")
                yield self._value()
        self._take("]", "Expecting ',' delimiter")
        if self.peek():
            raise self._malformed("Extra data", self._at)

    def _take(self, character: str, complaint: str) -> None:
        if self.peek() != character:
            raise self._malformed(complaint, self._at)
        self._at += 1

    def _value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self._malformed(error.msg, error.pos) from error
            else:
                # Anything else may be the rest of a number that the window cuts.
                if self._ended or self._text[end : end + 1] in _AFTER:
                    self._at = end
                    return value
            self._move()

    def _move(self) -> None:
        """Forget what was taken and read on, at least as much as is left: retries stay few."""
        last = self._text.rfind("\n", 0, self._at)
        self.line += self._text.count("\n", 0, self._at)
        self._column = self._at - last - 1 if last >= 0 else self._column + self._at
        rest = self._text[self._at :]
        more = self._file.read(max(CHUNK, len(rest)))
        self._text, self._at, self._ended = rest + more, 0, not more

    def _malformed(self, message: str, place: int) -> Malformed:
        last = self._text.rfind("\n", 0, place)
        column = place - last if last >= 0 else self._column + place + 1
        return Malformed(message, self.line + self._text.count("\n", 0, place), column)
