"""Passages before prompts: which are found, who reads them, and that no answer leaks."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from firstcli.api import Sample, UserError
from firstcli.plugins import calls
from firstcli.tasks import passages
from firstcli.tasks.retrieval import Retrieval, RetrievalOfTexts, RetrievalOptions
from firstcli.testing import check_task
from support.command_line import of_files, write_rows

CORPUS = """\
The Danube flows through Vienna
and into the Black Sea.

Honey bees dance to show where flowers are.

Copper conducts electricity better than iron.

Vienna is the capital of Austria.
"""
BEST = {
    "Which insect dances to show flowers?": "Honey bees dance to show where flowers are.",
    "What conducts electricity?": "Copper conducts electricity better than iron.",
    "Which city is the capital of Austria?": "Vienna is the capital of Austria.",
}


pytestmark = pytest.mark.skipif(find_spec("bm25s") is None, reason="bm25s is not installed")


def rows(*questions: str, **more: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"q{i}", "question": text, "choices": ["this", "that"], "answer": "A", **more}
        for i, text in enumerate(questions)
    ]


def task(
    folder: Path, questions: list[dict[str, Any]], corpus: str = CORPUS, **options: Any
) -> Retrieval:
    write_rows(folder / "data" / "train.jsonl", questions)
    (folder / "corpus.txt").write_text(corpus, "utf-8")
    given = {"task": of_files(folder / "data"), "corpus": str(folder / "corpus.txt"), **options}
    return Retrieval(RetrievalOptions.model_validate(given))


def samples(task: Retrieval) -> list[Sample]:
    return list(task.load("train").samples)


def plain(task: Retrieval) -> list[Sample]:
    inner = task.options.task
    return list(calls.task(inner.name, inner.options).load("train").samples)


def test_the_known_best_passage_comes_first(tmp_path: Path) -> None:
    found = task(tmp_path, rows(*BEST), k=1)
    for sample, own, passage in zip(samples(found), plain(found), BEST.values(), strict=True):
        assert sample.prompt == f"{passage}\n\n{own.prompt}"
        assert sample.teacher_prompt is None
        assert (sample.id, sample.candidates, sample.answer) == (
            *(own.id, own.candidates, own.answer),
        )
    check_task(found)


def test_passages_are_ranked_by_bm25(tmp_path: Path) -> None:
    """Against the formula of Lucene's BM25 in float64, for the words of the query."""
    texts = ["red red fish", "blue fish swims", "green bird", "red bird sings songs"]
    index = passages.PassageIndex([passages.Passage(text, None) for text in texts])
    query = ["red", "fish"]
    mean = sum(len(text.split()) for text in texts) / len(texts)

    def score(text: str) -> float:
        words, total = text.split(), 0.0
        for word in query:
            df = sum(word in each.split() for each in texts)
            idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
            tf = words.count(word)
            total += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean))
        return total

    ranked = sorted((text for text in texts if score(text) > 0), key=lambda t: -score(t))
    found = index.best("fish, red", 4, own="", own_id=None)
    assert [passage.text for passage in found] == ranked


@pytest.mark.parametrize("reader", ["teacher", "student", "both"])
def test_who_reads_the_passages(tmp_path: Path, reader: str) -> None:
    found = task(tmp_path, rows(*BEST), k=2, **{"for": reader})
    for sample, own in zip(samples(found), plain(found), strict=True):
        teacher, student = sample.as_teacher.prompt, sample.prompt
        assert (teacher != own.prompt) == (reader != "student")
        assert (student != own.prompt) == (reader != "teacher")
        assert teacher.endswith(own.prompt) and student.endswith(own.prompt)
    assert found.has_teacher_prompts == (reader != "both")
    assert (found.usage() is None) == (reader != "teacher")
    if reader != "both":
        check_task(found)


def test_the_template_holds_passages_and_prompt(tmp_path: Path) -> None:
    template = "Facts {{}}:\n{passages}\n---\n{prompt}"
    found = samples(task(tmp_path, rows("Vienna?"), k=2, template=template))
    shown = (
        "Vienna is the capital of Austria.\nThe Danube flows through Vienna and into the Black Sea."
    )
    assert found[0].prompt.startswith(f"Facts {{}}:\n{shown}\n---\n")
    for wrong in ("{prompt}", "{prompt} {passages}", "{passages} {question} {prompt}"):
        with pytest.raises(ValidationError, match="template"):
            task(tmp_path, rows("Vienna?"), template=wrong)


def test_a_question_without_a_shared_word_keeps_its_prompt_and_is_counted(tmp_path: Path) -> None:
    found = task(tmp_path, rows("Zyx?"))
    split = found.load("train")
    (sample,) = split.samples
    assert sample.prompt == plain(found)[0].prompt
    assert split.notes == ["1 prompts of split 'train' share no word with a passage"]


def test_a_passage_that_states_the_question_or_the_answer_of_the_sample_is_left_out(
    tmp_path: Path,
) -> None:
    corpus = "Which metal conducts?\n\nCopper conducts.\n\nIron conducts worse."
    (sample,) = samples(task(tmp_path, rows("Which metal conducts?"), corpus, k=3))
    assert sample.prompt.startswith("Copper conducts.\nIron conducts worse.\n\n")


def test_the_training_file_as_corpus_never_shows_a_question_its_own_row(tmp_path: Path) -> None:
    explained = [
        {**row, "why": f"Because copper number {i} conducts."}
        for i, row in enumerate(rows("What conducts copper?", "Copper conducts what?"))
    ]
    found = task(tmp_path, explained, corpus="x", k=2)
    path = tmp_path / "data" / "train.jsonl"
    own = found.options.model_copy(update={"corpus": path, "column": "why"})
    first, second = samples(Retrieval(own))
    assert first.prompt.startswith("Because copper number 1 conducts.\n\n")
    assert second.prompt.startswith("Because copper number 0 conducts.\n\n")


def test_the_training_file_without_ids_is_refused_as_corpus(tmp_path: Path) -> None:
    without = [{k: v for k, v in row.items() if k != "id"} for row in rows(*BEST)]
    found = task(tmp_path, without, corpus="x")
    path = tmp_path / "data" / "train.jsonl"
    own = found.options.model_copy(update={"corpus": path, "column": "question"})
    with pytest.raises(UserError, match=r"give all rows an `id`, or a different corpus"):
        samples(Retrieval(own))


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.csv"])
def test_a_table_is_read_by_its_column(tmp_path: Path, name: str) -> None:
    texts = list(BEST.values())
    path = tmp_path / name
    if name.endswith("csv"):
        path.write_text("body\n" + "".join(f'"{text}"\n' for text in texts), "utf-8")
    else:
        path.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts), "utf-8")
    read = passages.read_passages(path, "body")
    assert [passage.text for passage in read] == texts
    with pytest.raises(UserError, match=r"there is no column 'text'.*set column"):
        passages.read_passages(path, "text")


def test_mistakes_in_the_corpus_name_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt: there is no such file"):
        passages.read_passages(tmp_path / "none.txt", "text")
    (tmp_path / "empty.txt").write_text("\n\n", "utf-8")
    with pytest.raises(UserError, match=r"empty\.txt: there are no passages in this file"):
        passages.read_passages(tmp_path / "empty.txt", "text")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"latin\.txt: not UTF-8 text"):
        passages.read_passages(tmp_path / "latin.txt", "text")


def test_options_survive_a_round_trip_under_the_key_of_recipes(tmp_path: Path) -> None:
    options = task(tmp_path, rows(*BEST), **{"for": "teacher"}).options
    given = options.model_dump(mode="json", exclude_unset=True)
    assert given["for"] == "teacher"
    assert RetrievalOptions.model_validate(given) == options
    with pytest.raises(ValidationError, match="reader"):
        RetrievalOptions.model_validate({**given, "reader": "both"})


def test_tasks_without_candidates_have_their_own_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"prompt": "Name a metal.", "response": "Copper"}])
    texts = {"name": "instruction", "options": {"path": str(tmp_path)}}
    (tmp_path / "corpus.txt").write_text("A metal is copper or iron.", "utf-8")
    given = {"task": texts, "corpus": str(tmp_path / "corpus.txt")}
    options = RetrievalOptions.model_validate(given)
    with pytest.raises(UserError, match="has no candidates; use 'retrieval-texts'"):
        Retrieval(options)
    (sample,) = RetrievalOfTexts(options).load("train").samples
    assert sample.prompt.startswith("A metal is copper or iron.\n\n")


def test_without_bm25s_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs bm25s, .* pip install 'firstcli\[retrieval\]'"):
        passages.require_bm25s("task 'retrieval'")
