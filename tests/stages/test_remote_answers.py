"""Answers of a remote teacher that several runs share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from firstcli.api import CandidateQuery, TokenQuery
from firstcli.stages.remote_answers import SharedAnswers


def tokens(id: str, *ids: int) -> TokenQuery:
    return TokenQuery(id, np.array(ids, np.int64), np.array([len(ids)], np.int64))


def test_the_same_question_is_answered_whatever_its_id(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    answers = SharedAnswers(path)
    assert answers.get(tokens("a", 1, 2), 5) is None
    answers.add(tokens("a", 1, 2), 5, [[1], [-0.5]])
    answers.add(CandidateQuery("a", np.array([1, 2]), (7, 8)), 0, [-0.1, -2.0])
    again = SharedAnswers(path)
    assert again.get(tokens("b", 1, 2), 5) == [[1], [-0.5]]
    assert again.get(CandidateQuery("b", np.array([1, 2]), (7, 8)), 0) == [-0.1, -2.0]
    others: list[TokenQuery | CandidateQuery] = [
        tokens("a", 1, 3),
        CandidateQuery("a", np.array([1, 2]), (7, 9)),
    ]
    assert [again.get(query, 5) for query in others] == [None, None]
    assert again.get(tokens("a", 1, 2), 4) is None


def test_an_incomplete_line_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    SharedAnswers(path).add(tokens("a", 1), 1, [0])
    with path.open("a") as file:
        file.write('["unfinished')
    answers = SharedAnswers(path)
    answers.add(tokens("b", 2), 1, [3])
    assert SharedAnswers(path).get(tokens("b", 2), 1) == [3]
    assert SharedAnswers(path).get(tokens("a", 1), 1) == [0]
