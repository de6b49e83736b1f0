"""Answers of a remote teacher that several runs share, so that no run asks for them again."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

from firstcli.api import CandidateQuery, TokenQuery
from firstcli.runtime.files import append_lines
from firstcli.workspace.run import Run, once_per_run


class SharedAnswers:
    """Answers in a file, by a digest of what was asked; one process uses it at a time."""

    def __init__(self, path: Path) -> None:
        """Read the answers that earlier runs have got."""
        self._path = path
        self._known: dict[str, Any] = {}
        if path.is_file():
            for line in path.read_text("utf-8").splitlines():
                try:
                    self._known.update([json.loads(line)])
                except ValueError:  # a killed process left it incomplete
                    continue

    def get(self, query: TokenQuery | CandidateQuery, top_k: int) -> Any:
        """Return the answer to the same question; None if it was never asked.

        Args:
            query: the question.
            top_k: tokens per position; 0 for candidates.
        """
        return self._known.get(_digest(query, top_k))

    def add(self, query: TokenQuery | CandidateQuery, top_k: int, answer: Any) -> None:
        """Keep an answer, as JSON values."""
        key = _digest(query, top_k)
        if key not in self._known:
            self._known[key] = answer
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_lines(self._path, json.dumps([key, answer]) + "\n")


@once_per_run
def shared_answers(run: Run) -> SharedAnswers | None:
    """Return the answers that a run shares with others, if it does."""
    return None if run.shared_answers is None else SharedAnswers(run.shared_answers)


def _digest(query: TokenQuery | CandidateQuery, top_k: int) -> str:
    wanted = query.positions.tolist() if isinstance(query, TokenQuery) else query.candidates
    content = json.dumps([query.token_ids.tolist(), list(wanted), top_k])
    return blake2b(content.encode(), digest_size=16).hexdigest()
