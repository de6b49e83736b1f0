"""The passages of a local corpus, and the best of them for a question by BM25."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from firstcli.errors import UserError
from firstcli.tasks import tables

TEXT = ".txt"
"""The ending of a file whose passages are separated by empty lines."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One passage of a corpus."""

    text: str
    id: str | None
    """The id of its row, if the corpus is a table with ids."""


def read_passages(path: Path, column: str) -> list[Passage]:
    """Read a corpus: paragraphs of a text file, or one column of a table.

    Raises:
        UserError: the file is missing, unreadable or without passages, or a row lacks the column.
    """
    passages = list(_paragraphs(path) if path.suffix.lower() == TEXT else _rows(path, column))
    if not passages:
        raise UserError(f"{path}: there are no passages in this file")
    return passages


def _paragraphs(path: Path) -> Iterator[Passage]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save the corpus as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.strip():
            yield Passage(" ".join(paragraph.split()), None)


def _rows(path: Path, column: str) -> Iterator[Passage]:
    for row in tables.read_rows(path):
        row.require({column: "column"})
        text = " ".join(row.text(column).split())
        if text:
            yield Passage(text, row.id(None))


def require_bm25s(key: str) -> None:
    """Check that bm25s is installed; `key` is what needs it.

    Raises:
        UserError: it is not; names the extra.
    """
    if find_spec("bm25s") is None:
        raise UserError(
            f"{key}: needs bm25s, which is not installed; pip install 'firstcli[retrieval]'"
        )


class PassageIndex:
    """Ranks passages by BM25 as bm25s computes it (Lucene's variant, k1 = 1.5, b = 0.75).

    Words are lower case and at least two characters long; common English ones do not count.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        """Count the words of all passages; `require_bm25s` comes first."""
        import bm25s

        self._passages = passages
        self._index = bm25s.BM25()
        self._index.index(self._words([each.text for each in passages]), show_progress=False)
        self._texts = [_plain(passage.text) for passage in passages]

    def best(self, query: str, count: int, *, own: str, own_id: str | None) -> list[Passage]:
        """Return the best passages that share a word with a query, best first.

        Of equally good ones, the first of the corpus comes first. A passage that is part of the
        question's own text, such as its question or its answer, is left out, and so is one that
        contains the whole query.

        Args:
            query: the text to look for.
            count: the number of passages, at most.
            own: the question with its answer and explanation.
            own_id: the id of the question's own row in the corpus, if it has one.
        """
        words = self._words([query])[0]
        if not words:
            return []
        scores = np.asarray(self._index.get_scores(words), np.float64)
        whole, asked = _plain(own), _plain(query)
        found: list[Passage] = []
        for number in np.argsort(-scores, kind="stable").tolist():
            if scores[number] <= 0 or len(found) == count:
                break
            text, passage = self._texts[number], self._passages[number]
            is_own = own_id is not None and passage.id == own_id
            if not is_own and text not in whole and asked not in text:
                found.append(passage)
        return found

    @staticmethod
    def _words(texts: list[str]) -> list[list[str]]:
        import bm25s

        words: Any = bm25s.tokenize(texts, return_ids=False, show_progress=False)
        return [list(each) for each in words]


def _plain(text: str) -> str:
    """Return a text's words in lower case, between spaces, so that parts of words do not match."""
    words = " ".join(re.findall(r"\w+", text.lower()))
    return f" {words} "
