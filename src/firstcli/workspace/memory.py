"""Results of checks, remembered in the run folder by the content that they depend on.

Checks need tokenizers, data and sometimes a model's architecture. As long as none of these change,
their results are read from here, and an up-to-date run is shown without importing PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from firstcli.runtime.console import Console
from firstcli.runtime.files import suppress_read_only, write_json
from firstcli.workspace.artifacts import fingerprint

T = TypeVar("T")

MOST_ENTRIES = 1000
"""Entries that are kept; the oldest are dropped first."""


class Memory:
    """A small JSON file of results, each under a digest of everything that it depends on."""

    def __init__(self, path: Path, console: Console) -> None:
        self._path = path
        self._console = console
        self._changed = False
        try:
            self._entries: dict[str, Any] = dict(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError):
            self._entries = {}

    def recall(
        self, what: str, content: Mapping[str, str], make: Callable[[], T], *, anew: bool = False
    ) -> T:
        """Return a remembered result together with its warnings, or make and remember it.

        Args:
            what: name of the result.
            content: everything that the result depends on.
            make: computes the result, a JSON value.
            anew: compute the result even if it is remembered.

        Raises:
            UserError: `make` raised it; nothing is remembered then.
        """
        key = fingerprint({**content, "what": what})
        if key not in self._entries or anew:
            with self._console.collect_warnings() as warnings:
                value = make()
            entry = {"what": what, "value": value, "warnings": warnings}
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
            kept = dict(list(self._entries.items())[-MOST_ENTRIES:])
            with suppress_read_only():
                write_json(self._path, kept)
            self._changed = False
