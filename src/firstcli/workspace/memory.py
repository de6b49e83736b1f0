"""Results of checks and digests of data that the run folder remembers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from firstcli.runtime.console import Console
from firstcli.runtime.files import suppress_read_only, write_json
from firstcli.workspace.artifacts import fingerprint

T = TypeVar("T")

MOST_ENTRIES = 1000
"""Remembered checks that are kept; the oldest are dropped first."""
NOT_REMEMBERED = "not remembered"
"""The result of a check that could not be made yet."""


class Memory:
    """Results of checks in the run folder, each under a digest of everything that it depends on.

    Checks need tokenizers, data and sometimes a model's architecture. As long as none of these
    change, their results are read from here, and an up-to-date run is shown without PyTorch.
    """

    def __init__(self, path: Path, console: Console) -> None:
        self._path = path
        self._console = console
        self._changed = False
        self._entries: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            if isinstance(entries := json.loads(path.read_text("utf-8")), list):
                self._entries = dict(entries)

    def recall(
        self,
        what: str,
        content: Mapping[str, str],
        make: Callable[[], T],
        *,
        anew: bool = False,
        permanent: bool = False,
    ) -> T:
        """Return a remembered result together with its warnings, or make and remember it.

        Args:
            what: name of the result.
            content: everything that the result depends on.
            make: computes the result, a JSON value; `NOT_REMEMBERED` is returned and forgotten.
            anew: compute the result even if it is remembered.
            permanent: keep the result however many others there are.

        Raises:
            UserError: `make` raised it; nothing is remembered then.
        """
        key = fingerprint({**content, "what": what})
        if key not in self._entries or anew:
            with self._console.collect_warnings() as warnings:
                value = make()
            if value == NOT_REMEMBERED:
                return value
            entry = {"what": what, "value": value, "warnings": warnings, "permanent": permanent}
            self._changed |= self._entries.get(key) != entry
            self._entries[key] = entry
            return value
        for warning in self._entries[key]["warnings"]:
            self._console.warn(warning)
        remembered: T = self._entries[key]["value"]
        return remembered

    def save(self) -> None:
        """Write what was added, if the run folder exists and can be written."""
        if self._changed and self._path.parent.is_dir():
            old = list(self._entries.items())[:-MOST_ENTRIES]
            dropped = {key for key, entry in old if not entry.get("permanent")}
            kept = [item for item in self._entries.items() if item[0] not in dropped]
            with suppress_read_only():
                write_json(self._path, kept)  # a list, because `write_json` sorts keys
            self._changed = False
