"""`first eval --from`: outputs of other programs are evaluated and compared, or refused by line."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstcli.errors import UserError
from firstcli.metrics import lm_eval, summarize
from firstcli.metrics.records import EvalRecords
from support.command_line import first

CHOICES = (" fire", " water", " 7")
SAME_TEXT = {f"gen_args_{c}": {"arg_0": f"Q {c}", "arg_1": " 7"} for c in range(2)}  # winogrande
Sample = dict[str, Any]


def sample(doc: int, log_likelihoods: Sequence[float], target: object = 0, **other: Any) -> Sample:
    """Return a line as version 0.4.13 writes it: numbers as strings, requests by name."""
    pairs = [[str(value), "False"] for value in log_likelihoods]
    return {
        "doc_id": doc,
        "doc": {"question": f"Q{doc}"},
        "target": str(target),
        "arguments": {
            f"gen_args_{c}": {"arg_0": f"Q{doc}", "arg_1": CHOICES[c]} for c in range(len(pairs))
        },
        "resps": [[pair] for pair in pairs],
        "filtered_resps": pairs,
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": f"{doc:064d}",
        **other,
    }


def write(path: Path, samples: Sequence[Sample | str]) -> Path:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in samples]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def log(folder: Path, n: int = 60, sharpness: float = 1.0, name: str = "samples_a.jsonl") -> Path:
    world = np.random.default_rng(0)
    samples = []
    for doc in range(n):
        logits = world.normal(0, 1.5, 3)
        p = np.exp(logits) / np.exp(logits).sum()
        target = int(world.choice(3, p=p))
        shown = logits * sharpness
        row = shown - np.log(np.exp(shown).sum()) - 0.5
        samples.append(sample(doc, row.tolist(), target, acc=float(row.argmax() == target)))
    return write(folder / name, samples)


def test_a_log_becomes_records(tmp_path: Path) -> None:
    path = write(
        tmp_path / "samples.jsonl",
        [sample(3, [-1.0, -2.0], 1, acc=0.0), "", sample(5, [-2.0, -1.5, -3.0], 1, acc=1.0)],
    )
    records = lm_eval.read(path)
    assert records.ids == ("3:000000000000", "5:000000000000")
    assert records.answer.tolist() == [1, 1] and records.correct.tolist() == [False, True]
    assert records.count.tolist() == [2, 3] and records.scope == "vocabulary"
    assert records.log_probs[0, :2].tolist() == [-1.0, -2.0]
    assert records.candidate_mass is not None
    assert records.candidate_mass[0] == pytest.approx(math.exp(-1) + math.exp(-2))


def test_numbers_and_lists_of_older_versions(tmp_path: Path) -> None:
    old = sample(0, [-1.0, -2.0], 1, acc=0.0)
    old |= {"target": 1, "filtered_resps": [[-1.0, True], [-2.0, False]]}
    old["arguments"] = [["Q0", " fire"], ["Q0", " water"]]
    del old["doc_hash"], old["filter"]
    records = lm_eval.read(write(tmp_path / "x.jsonl", [old]))
    assert records.ids == ("0",) and records.answer.tolist() == [1]


@pytest.mark.parametrize(
    ("targets", "answers"),
    [
        (["0", "1"], [0, 1]),
        ([" water", "fire"], [1, 0]),
        (["water", "7"], [1, 2]),  # a text that looks like an index, beyond the choices
    ],
)
def test_targets_are_indices_or_texts(
    tmp_path: Path, targets: list[str], answers: list[int]
) -> None:
    rows = [sample(i, [-1.0, -2.0, -3.0], target) for i, target in enumerate(targets)]
    assert lm_eval.read(write(tmp_path / "x.jsonl", rows)).answer.tolist() == answers


def test_the_logged_accuracy_tells_an_index_from_a_text(tmp_path: Path) -> None:
    arguments = {f"gen_args_{c}": {"arg_0": "Q", "arg_1": f" {3 - c}"} for c in range(3)}
    rows = [
        sample(0, [-3.0, -2.0, -1.0], 1, arguments=arguments, acc=1.0),  # the text of choice 2
        sample(1, [-1.0, -2.0, -3.0], 2, arguments=arguments, acc=0.0),  # the text of choice 1
    ]
    assert lm_eval.read(write(tmp_path / "x.jsonl", rows)).answer.tolist() == [2, 1]


def other_choices(*texts: str) -> dict[str, dict[str, str]]:
    return {f"gen_args_{c}": {"arg_0": "Q", "arg_1": f" {text}"} for c, text in enumerate(texts)}


@pytest.mark.parametrize(
    ("target", "choices", "answer"),
    [
        ([2], CHOICES, 2),
        ("[2]", CHOICES, 2),
        (["water"], CHOICES, 1),
        ("['water']", CHOICES, 1),
        ("[2]", ("[1]", "[2]", "[3]"), 1),  # the text of a choice, not a list
        (2.0, CHOICES, 2),
        ("B", CHOICES, 1),
        ("(c)", CHOICES, 2),
        ("B", ("C", "B", "A"), 1),  # a text here: its letter would be choice 1, too
        (True, ("no", "yes", "maybe"), 1),
        ("9", ("7", "8", "9"), 2),
    ],
)
def test_every_form_of_the_target_is_read(
    tmp_path: Path, target: object, choices: Sequence[str], answer: int
) -> None:
    values = [-1.0, -2.0, -3.0]
    values[answer] = -0.5  # acc = 1 excludes all other readings
    row = sample(0, values, arguments=other_choices(*choices), acc=1.0) | {"target": target}
    assert lm_eval.read(write(tmp_path / "x.jsonl", [row])).answer.tolist() == [answer]


@pytest.mark.parametrize(
    ("target", "choices", "senses", "by_gold"),
    [
        (
            "2",
            ("1", "2", "3"),
            ("choice 3 of 3 ('3') as index-from-0", "choice 2 of 3 ('2') as index-from-1"),
            {"index-from-0": 2, "index-from-1": 1, "text": 1},
        ),
        (
            "True",
            ("True", "False"),
            ("choice 2 of 2 ('False') as index-from-0", "choice 1 of 2 ('True') as text"),
            {"index-from-0": 1, "text": 0},
        ),
        (
            "A",
            ("B", "A"),
            ("choice 1 of 2 ('B') as letter", "choice 2 of 2 ('A') as text"),
            {"letter": 0, "text": 1},
        ),
    ],
)
def test_a_target_with_two_readings_is_refused_until_gold_decides(
    tmp_path: Path,
    target: str,
    choices: Sequence[str],
    senses: Sequence[str],
    by_gold: dict[str, int],
) -> None:
    row = sample(0, [-2.0] * len(choices), target, arguments=other_choices(*choices))
    path = write(tmp_path / "x.jsonl", [row])
    shown = [f"--gold {gold}" for gold in by_gold]
    first("eval", "--from", path).mistake("x.jsonl:1", f"'{target}'", *senses, *shown)
    for gold, answer in by_gold.items():
        result = first("eval", "--from", path, "--gold", gold, "--json")
        assert result.code == 0, result.err
        assert lm_eval.read(path, gold).answer.tolist() == [answer]  # type: ignore[arg-type]


def test_gold_that_fits_no_row_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [sample(0, [-1.0, -2.0], 0)])
    first("eval", "--from", path, "--gold", "letter").mistake("x.jsonl:1", "'0'", "letter")
    first("eval", "--from", path, "--gold", "number").mistake("--gold", "'number'", "letter")
    lm_eval.read(path).save(tmp_path / "x.parquet", {})
    first("eval", "--from", tmp_path / "x.parquet", "--gold", "text").mistake("--gold", "records")


def test_readings_that_give_the_same_answers_need_no_decision(tmp_path: Path) -> None:
    """As in MMLU, whose choices are the letters."""
    row = sample(0, [-1.0, -2.0], "B", arguments=other_choices("A", "B"))
    assert lm_eval.read(write(tmp_path / "x.jsonl", [row])).answer.tolist() == [1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", ["lines", "indented lines", "array", "indented array"])
def test_every_layout_and_encoding_of_a_log_is_read(
    tmp_path: Path, form: str, encoding: str
) -> None:
    rows = [sample(doc, [-1.0, -2.0], doc) | {"doc": "Wo? \u2028 Ä"} for doc in (0, 1)]
    indent = 2 if "indented" in form else None
    texts = [json.dumps(row, indent=indent, ensure_ascii=False) for row in rows]
    text = json.dumps(rows, indent=indent) if "array" in form else "\n".join(texts)
    path = tmp_path / ("x.json" if "array" in form else "x.jsonl")
    path.write_text(f"\n{text}\n", encoding)
    assert lm_eval.read(path).answer.tolist() == [0, 1]
    assert first("eval", "--from", path, "--json").json["metrics"]["n"] == 2


@pytest.mark.parametrize(
    ("end", "message"),
    [("", "complete?"), (",", "complete?"), (", {", "not valid JSON"), ("] 1", "complete?")],
)
def test_a_truncated_array_is_refused(tmp_path: Path, end: str, message: str) -> None:
    text = json.dumps([sample(0, [-1.0, -2.0], 0)], indent=1)
    (tmp_path / "x.jsonl").write_text(text.rstrip("]\n ") + end)
    with pytest.raises(UserError, match=message):
        lm_eval.read(tmp_path / "x.jsonl")


def test_one_filter_is_read(tmp_path: Path) -> None:
    rows = [
        sample(0, [-1.0, -2.0], 0, filter="other"),
        sample(0, [-2.0, -1.0], 0, filter="none"),
        sample(1, [-1.0, -2.0], 0, filter="other"),
    ]
    assert lm_eval.read(write(tmp_path / "x.jsonl", rows)).prediction.tolist() == [1]
    alone = [row for row in rows if row["filter"] == "other"]
    assert len(lm_eval.read(write(tmp_path / "y.jsonl", alone))) == 2


def test_choices_without_their_context_are_left_out(tmp_path: Path) -> None:
    row = sample(0, [-1.0, -2.0, -0.5], 1, acc=0.0)
    conditional = {f"gen_args_{c}": {"arg_0": "Q", "arg_1": CHOICES[c]} for c in range(2)}
    unconditional = {f"gen_args_{2 + c}": {"arg_0": "", "arg_1": CHOICES[c]} for c in range(2)}
    row["arguments"] = conditional | unconditional
    row["filtered_resps"] = [["-1.0", "x"], ["-2.0", "x"], ["-0.1", "x"], ["-0.2", "x"]]
    records = lm_eval.read(write(tmp_path / "x.jsonl", [row]))
    assert records.count.tolist() == [2] and records.answer.tolist() == [1]


def test_overlapping_texts_are_only_compared(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [sample(0, [-0.1, -0.2], 0), sample(1, [-3.0, -2.0], 0)])
    records = lm_eval.read(path)
    assert records.scope == "candidates" and records.candidate_mass is None
    assert records.confidence[0] == pytest.approx(1 / (1 + math.exp(-0.1)))
    first("eval", "--from", path, "--confidence", "full").mistake("x.jsonl", "candidates")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"x\.jsonl:2: is not valid JSON"),
        ("[1]", r"x\.jsonl:2: .*doc_id"),
        ({"doc_id": 1, "target": "0"}, r"x\.jsonl:2: .*filtered_resps"),
        (sample(1, [], 0, filtered_resps=["42"]), r"x\.jsonl:2: .*generate"),
        (sample(1, [], 0, filtered_resps="ab"), r"x\.jsonl:2: .*generate"),
        (sample(1, [], 0, filtered_resps=[["ab", "cd"]]), r"x\.jsonl:2: .*generate"),
        (sample(1, [], 0, filtered_resps=-3.0), r"x\.jsonl:2: .*generate"),
        (sample(1, [-1.0], 0), r"x\.jsonl:2: .*has 1 choice"),
        (sample(1, [-1.0, -2.0], "7", arguments=SAME_TEXT), r"x\.jsonl:2: .*differ in the context"),
        (sample(1, [-1.0, math.nan], 0), r"x\.jsonl:2: .*not log-likelihoods"),
        (sample(1, [-1.0, 2.0], 0), r"x\.jsonl:2: .*not log-likelihoods"),
        (sample(1, [-1.0, -2.0], 0, arguments=5), r"x\.jsonl:2: `arguments`"),
        (sample(1, [-1.0, -2.0], 0, acc="0.0"), r"x\.jsonl:2: .*acc = 0"),
        (sample(1, [-1.0, -2.0], 3), r"x\.jsonl:2: the target '3' is not the index-from-0 or"),
        (sample(1, [-1.0, -2.0], 2), r"x\.jsonl:2: the target '2' is not the index-from-0 of"),
        (sample(1, [-1.0, -2.0], "[0, 1]"), r"x\.jsonl:2: the target \[0, 1\] names 2 right"),
        (sample(1, [-1.0, -2.0], 0) | {"target": [0, 1]}, r"2: .* names 2 right answers"),
        (sample(1, [-1.0, -2.0], "[]"), r"x\.jsonl:2: the target \[\] names 0 right"),
        (sample(1, [-1.0, -2.0], -100), r"x\.jsonl:2: the target '-100' is not the index"),
        (sample(1, [-1.0, -2.0], 0, acc=0.37), r"x\.jsonl:2: .*acc = 0.37 is neither 0 nor 1"),
        (sample(1, [-1.0, -2.0], 0, acc=0.0), r"x\.jsonl:2: .*acc = 0"),
        (sample(1, [-1.0, -2.0], "water"), r"2: the target 'water' is not the index-from-0 of"),
        (sample(0, [-1.0, -2.0], 0), "not unique"),
        (sample(1, [-math.inf, -math.inf], 0), "probability zero"),
    ],
)
def test_invalid_lines_are_refused(tmp_path: Path, line: Sample | str, message: str) -> None:
    path = write(tmp_path / "x.jsonl", [sample(0, [-1.0, -2.0], 0), line])
    with pytest.raises(UserError, match=message) as error:
        lm_eval.read(path)
    assert str(path) in str(error.value)


def test_unreadable_files_are_refused_by_name(tmp_path: Path) -> None:
    first("eval", "--from", tmp_path / "none.jsonl").mistake("none.jsonl")
    first("eval", "--from", tmp_path / "none.parquet").mistake("none.parquet")
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe\x00")
    first("eval", "--from", tmp_path / "x.jsonl").mistake("x.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    first("eval", "--from", tmp_path / "empty.jsonl").mistake("empty.jsonl", "no samples")
    first("eval", "--from", tmp_path / "x.csv").mistake("x.csv", "no such file")
    first("eval", "--from", tmp_path / "x.txt").mistake("x.txt", ".parquet")


def test_a_log_and_its_records_give_the_same_metrics(tmp_path: Path) -> None:
    path = log(tmp_path)
    lm_eval.read(path).save(tmp_path / "records.parquet", {})
    there = first("eval", "--from", path, "--json").json
    here = first("eval", "--from", tmp_path / "records.parquet", "--json").json
    assert here["metrics"] == there["metrics"] and here["intervals"] == there["intervals"]
    found = summarize(EvalRecords.load(tmp_path / "records.parquet"), "candidates", 10)
    assert there["metrics"]["ece"] == found.ece and there["metrics"]["n"] == 60
    assert set(there["intervals"]) == {"accuracy", "ece", "trust"}
    full = first("eval", "--from", path, "--json", "--confidence", "full", "--bins", "5").json
    assert (full["confidence_kind"], full["bins"]) == ("full", 5)
    assert full["metrics"]["confidence"] < there["metrics"]["confidence"]


def test_the_table_names_the_convention(tmp_path: Path) -> None:
    shown = first("eval", "--from", log(tmp_path))
    assert shown.code == 0, shown.err
    for part in ("60 questions", "confidence: candidates", "10 bins (lo, hi]", "p = ", "AURC"):
        assert part in shown.out
    assert "…" not in shown.out
    quiet = first("eval", "--from", log(tmp_path), "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_two_files_are_compared_over_their_common_questions(tmp_path: Path) -> None:
    ours = log(tmp_path, 400)
    theirs = log(tmp_path, 300, sharpness=4.0, name="samples_b.jsonl")
    result = first("eval", "--from", ours, "--versus", theirs, "--json").json["versus"]
    assert result["n"] == 300
    assert result["differences"]["ece"]["distinguishable"]
    assert result["differences"]["accuracy"]["value"] == 0.0
    shown = first("eval", "--from", ours, "--versus", theirs).out
    assert "300 common questions" in shown and "the same answers" in shown


def test_files_of_different_questions_are_not_compared(tmp_path: Path) -> None:
    path = log(tmp_path)
    other = write(tmp_path / "other.jsonl", [sample(0, [-1.0, -2.0], 0, doc_hash="else")])
    first("eval", "--from", path, "--versus", other).mistake("no question ids in common")
    answer = int(lm_eval.read(path).answer[0])
    other_answer = CHOICES[(answer + 1) % 3]
    changed = write(tmp_path / "changed.jsonl", [sample(0, [-1.0, -2.0, -3.0], other_answer)])
    first("eval", "--from", path, "--versus", changed).mistake("changed.jsonl", "right answers")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ((), ("RECIPE", "--from")),
        (("recipe.yaml", "--from", "x.jsonl"), ("RECIPE", "--from")),
        (("--arm", "first", "--from", "x.jsonl"), ("--arm", "--from")),
        (("--force", "--from", "x.jsonl"), ("--force", "--from")),
        (("recipe.yaml", "--bins", "5"), ("--bins", "metrics")),
        (("recipe.yaml", "--versus", "x.jsonl"), ("--versus", "--from")),
        (("--from", "x.jsonl", "--confidence", "all"), ("--confidence", "'all'")),
    ],
)
def test_options_that_do_not_go_together(args: tuple[str, ...], parts: tuple[str, ...]) -> None:
    first("eval", *args).mistake(*parts)


def test_questions_without_a_right_candidate(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    EvalRecords.from_log_probs(["a", "b"], [-1, -1], [[-1.0, -2.0]] * 2).save(path, {})
    result = first("eval", "--from", path, "--json").json
    assert result["metrics"]["accuracy"] is None and result["metrics"]["chance"] == 0.5
    assert "no candidate is right" in first("eval", "--from", path).out
    first("eval", "--from", path, "--versus", path).mistake("x.parquet", "nothing to compare")


def test_only_keeps_the_order_of_questions() -> None:
    records = EvalRecords.from_log_probs(["a", "b", "c"], [0, 1, 0], [[-1.0, -2.0]] * 3)
    kept = records.only({"c", "a"})
    assert kept.ids == ("a", "c") and kept.correct.tolist() == [True, True] and kept.truth is None
