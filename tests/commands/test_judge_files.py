"""`first judge`: files of any format, compared, recalibrated and shown on the report's page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from firstcli.metrics import brier, ece, nll
from firstcli.metrics.records import EvalRecords
from firstcli.reporting import page
from firstcli.reporting.data import ReportData
from firstcli.reporting.formats import to_json, to_markdown
from support.command_line import contents, first, write_rows

if TYPE_CHECKING:
    from support.installed_plugins import Install

pytest_plugins = ["support.installed_plugins"]

N, CLASSES, TEMPERATURE = 400, 4, 3.0
ISOTONIC = Path(__file__).parents[2] / "plugins/firstcli-isotonic/src/firstcli_isotonic.py"


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def here(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, where pages have no figures, which take a second."""

    def write(folder: Path, data: ReportData) -> None:
        (folder / "index.html").write_text(to_markdown(data), "utf-8")
        (folder / "table.json").write_text(to_json(data), "utf-8")

    monkeypatch.setattr(page, "write_report", write)
    return drawn


def world(seed: int = 0, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated log-probabilities and the right classes."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (n, CLASSES))
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = (random.random((n, 1)) > np.exp(logits).cumsum(axis=1)).sum(axis=1)
    return logits, labels.clip(max=CLASSES - 1)


def npz(path: Path, sharpness: float = 1.0, seed: int = 0, n: int = N) -> Path:
    logits, labels = world(seed, n)
    np.savez(path, logits=sharpness * logits, labels=labels)
    return path


def naive_softmax(logits: np.ndarray) -> np.ndarray:
    return np.array([np.exp(row) / sum(np.exp(row)) for row in logits])


def test_the_metrics_of_arrays_are_those_of_naive_code(here: Path) -> None:
    result = first("judge", npz(here / "x.npz", 2.0), "--json")
    assert result.code == 0, result.err
    (found,) = result.json["files"]
    logits, labels = world()
    p = naive_softmax(2.0 * logits)
    top = p.argmax(axis=1)
    assert (found["model"], found["metrics"]["n"]) == ("x", N)
    assert found["metrics"]["accuracy"] == pytest.approx(np.mean(top == labels))
    assert found["metrics"]["ece"] == pytest.approx(ece(p.max(axis=1), top == labels))
    assert found["metrics"]["nll"] == pytest.approx(nll(p, labels).value)
    assert found["metrics"]["brier"] == pytest.approx(brier(p, labels))


def test_the_page_is_written_as_a_whole_and_again(drawn: Path) -> None:
    here = drawn
    result = first("judge", npz(here / "x.npz"))
    assert result.code == 0, result.err
    assert f"{N} questions" in result.out and "page: judge/x/index.html" in result.out
    written = contents(here / "judge/x")
    assert {"index.html", "table.json", "table.csv", "table.md", "judge.json"} <= set(written)
    assert str(here).encode() not in b"".join(written.values())  # no path of this machine
    assert b">Reliability<" in written["index.html"]
    assert b"first predict" not in written["index.html"]  # there is no run
    args = ("--quiet", "--recalibrate", "logit-temperature")
    again = first("judge", npz(here / "x.npz", 2.0), *args)
    assert (again.code, again.out) == (0, "")
    assert b"temperature+x+T" in b"".join(map(str.encode, contents(here / "judge/x")))
    assert contents(here / "judge/x")["judge.json"] != written["judge.json"]
    assert [path.name for path in (here / "judge").iterdir()] == ["x"]


def test_nothing_foreign_is_replaced(here: Path) -> None:
    path = npz(here / "x.npz")
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").write_text("precious")
    first("judge", path, "--out", "mine").mistake("--out mine", "'thesis.tex'")
    first("judge", path, "--out", path).mistake("x.npz", "not a folder")
    first("judge", path, "--out", ".").mistake("--out .", "current folder")
    assert first("judge", path, "--out", "page").code == 0
    (here / "page" / "notes.txt").write_text("precious")
    first("judge", path, "--out", "page").mistake("'notes.txt'")
    assert (here / "page" / "notes.txt").exists()
    (here / "report").mkdir()
    (here / "report" / "index.html").write_text("of a run")
    first("judge", path, "--out", "report").mistake("'index.html'")


def test_files_of_the_same_rows_are_paired(here: Path) -> None:
    sharp, plain = npz(here / "sharp.npz", 3.0), npz(here / "plain.npz")
    result = first("judge", plain, sharp, "--out", "page", "--json").json
    (difference,) = result["differences"]
    assert (difference["model"], difference["minus"], difference["n"]) == ("sharp", "plain", N)
    assert difference["differences"]["ece"]["distinguishable"]
    assert not difference["differences"]["accuracy"]["distinguishable"]
    table = json.loads((here / "page/table.json").read_text("utf-8"))
    assert [(row["evaluation"], row["model"]) for row in table["rows"]] == [
        ("outputs", "plain"),
        ("outputs", "sharp"),
    ]
    out = first("judge", plain, sharp, "--out", "page").out
    assert f"sharp minus plain: {N} common questions" in out and "the same answers" in out


def test_other_questions_are_shown_but_not_compared(here: Path) -> None:
    one, other = npz(here / "one.npz"), npz(here / "other.npz", seed=1)
    result = first("judge", one, other)
    assert "not compared: both files need ids" in result.out
    table = json.loads((here / "judge/one/table.json").read_text("utf-8"))
    assert {row["evaluation"] for row in table["rows"]} == {
        "questions of one",
        "questions of other",
    }


def test_files_with_equal_names_are_told_apart(here: Path) -> None:
    for folder in ("a", "b"):
        (here / folder).mkdir()
        npz(here / folder / "first.npz", 1.0 + (folder == "b"))
    result = first("judge", "a/first.npz", "b/first.npz", "--json").json
    assert [one["model"] for one in result["files"]] == ["a/first.npz", "b/first.npz"]
    first("judge", "a/first.npz", "a/first.npz").mistake("a/first.npz", "twice")


def test_a_temperature_is_fitted_on_a_part_and_judged_on_the_rest(here: Path) -> None:
    path = npz(here / "x.npz", TEMPERATURE, n=2000)
    args = ("judge", path, "--recalibrate", "logit-temperature", "--fit-on", "0.4", "--json")
    result = first(*args).json
    before, after = result["files"]
    assert (before["model"], after["model"]) == ("x", "x + T")
    fit = result["recalibrators"]["x + T"]
    assert fit["temperature"] == pytest.approx(TEMPERATURE, rel=0.1)
    assert fit["rows"] + before["metrics"]["n"] == 2000 and 700 < fit["rows"] < 900
    assert before["metrics"]["n"] == after["metrics"]["n"]
    assert after["metrics"]["ece"] < before["metrics"]["ece"] / 2
    assert after["metrics"]["accuracy"] == before["metrics"]["accuracy"]
    assert first(*args).json == result  # the cut and the fit are deterministic
    written = (here / "judge/x/index.html").read_text("utf-8")
    assert "x + T" in written and "logit-temperature fitted on" in written


def test_the_numbers_after_recalibration_are_those_of_naive_code(here: Path) -> None:
    fit, rest = npz(here / "fit.npz", 2.0, seed=1), npz(here / "rest.npz", 2.0)
    found = first(
        "judge", rest, "--recalibrate", "logit-temperature", "--fit-on", fit, "--json"
    ).json
    temperature = found["recalibrators"]["rest + T"]["temperature"]
    assert temperature == pytest.approx(2.0, rel=0.15)
    logits, labels = world()
    p = naive_softmax(2.0 * logits / temperature)
    metrics = found["files"][1]["metrics"]
    assert metrics["n"] == N
    assert metrics["nll"] == pytest.approx(nll(p, labels).value)
    assert metrics["ece"] == pytest.approx(ece(p.max(axis=1), p.argmax(axis=1) == labels))


def test_a_plugin_recalibrates_the_outputs_of_any_program(here: Path, install: Install) -> None:
    code = ISOTONIC.read_text("utf-8")
    install("firstcli-isotonic", code, name="isotonic", target="firstcli_isotonic:Isotonic")
    path = npz(here / "x.npz", TEMPERATURE, n=2000)
    before, after = first("judge", path, "--recalibrate", "isotonic", "--json").json["files"]
    assert after["metrics"]["ece"] < before["metrics"]["ece"] / 2
    p = naive_softmax(TEMPERATURE * world(n=2000)[0])
    correct = p.argmax(axis=1) == world(n=2000)[1]
    rows = [["confidence", "correct"], *zip(p.max(axis=1).tolist(), correct.tolist(), strict=True)]
    text = "\n".join(",".join(map(str, row)) for row in rows)
    (here / "confidences.csv").write_text(text, "utf-8")
    found = first("judge", "confidences.csv", "--recalibrate", "isotonic", "--json").json
    plain, changed = found["files"]
    assert plain["metrics"]["ece"] == pytest.approx(before["metrics"]["ece"])
    assert changed["metrics"]["ece"] < plain["metrics"]["ece"] / 2
    assert changed["metrics"]["accuracy"] == plain["metrics"]["accuracy"]


def test_options_are_written_as_in_a_recipe(here: Path) -> None:
    path = npz(here / "x.npz", 2.0)
    ref = "{name: logit-temperature, options: {criterion: brier}}"
    found = first("judge", path, "--recalibrate", ref, "--json").json
    assert found["recalibrators"]["x + T"]["criterion"] == "brier"


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (("--recalibrate", "logit-temprature"), ("logit-temprature", "did you mean")),
        (("--recalibrate", "{name: none, options: {x: 1}}"), ("--recalibrate", "x")),
        (("--recalibrate", "none", "--fit-on", "1.5"), ("--fit-on 1.5", "between 0 and 1")),
        (("--recalibrate", "none", "--fit-on", "0.00001"), ("no question to fit on",)),
        (("--recalibrate", "none", "--fit-on", "gone.npz"), ("gone.npz", "no such file")),
        (("--recalibrate", "none", "--confidence", "full"), ("candidates",)),
        (("--recalibrate", "none", "--fit-on", "./x.npz"), ("is the judged file",)),
        (("--fit-on", "0.5"), ("--fit-on", "--recalibrate")),
        (("--gold", "text"), ("--gold", "logs")),
        (("--confidence", "full"), ("x.npz", "--confidence candidates")),
        (("y.npz", "--recalibrate", "none", "--fit-on", "x.npz"), ("x.npz", "one FILE")),
        (("z.txt",), ("z.txt", ".npz")),
    ],
)
def test_options_that_do_not_fit(here: Path, args: tuple[str, ...], parts: tuple[str, ...]) -> None:
    npz(here / "x.npz")
    npz(here / "y.npz")
    first("judge", "x.npz", *args).mistake(*parts)
    assert not (here / "judge").exists()


def test_a_part_to_fit_on_must_be_other_questions_of_the_same_classes(here: Path) -> None:
    def table(name: str, ids: range, classes: str = "ab") -> Path:
        lines = [f"id,prob_{classes[0]},prob_{classes[1]},label"]
        lines += [f"q{i},0.{6 + i % 3},0.{4 - i % 3},{classes[0]}" for i in ids]
        (here / name).write_text("\n".join(lines), "utf-8")
        return here / name

    args = ("judge", table("x.csv", range(9)), "--recalibrate", "none", "--fit-on")
    first(*args, table("y.csv", range(8, 20))).mistake("y.csv", "'q8'", "on others")
    first(*args, table("z.csv", range(9, 20), "ac")).mistake("z.csv", "'c'")
    (here / "w.csv").write_text("confidence,correct\n0.5,1\n", "utf-8")
    first(*args, here / "w.csv").mistake("w.csv", "a probability per class")


def test_records_logs_and_tables_are_read_by_one_command(here: Path) -> None:
    logits, labels = world(n=40)
    ids = [f"q{i}" for i in range(40)]
    EvalRecords.from_log_probs(ids, labels.tolist(), list(logits)).save(here / "run.parquet", {})
    rows = [
        {
            "doc_id": f"q{i}",
            "target": int(label),
            "filtered_resps": [[float(value), False] for value in row],
            "arguments": [["Q", f" {c}"] for c in "wxyz"],
        }
        for i, (row, label) in enumerate(zip(logits, labels, strict=True))
    ]
    write_rows(here / "samples.jsonl", rows)
    np.savez(here / "table.npz", logits=logits, labels=labels, ids=ids)
    found = first("judge", "samples.jsonl", "table.npz", "--json")
    assert found.code == 0, found.err
    assert found.json["differences"][0]["n"] == 40
    ours = first("judge", "run.parquet", "table.npz", "--json").json
    assert [one["metrics"]["ece"] for one in ours["files"]] == pytest.approx(
        [found.json["files"][0]["metrics"]["ece"]] * 2
    )
    alias = first("eval", "--from", "table.npz", "--versus", "run.parquet", "--json").json
    assert alias["metrics"] == ours["files"][1]["metrics"] and alias["versus"]["n"] == 40


def test_names_never_become_markup(drawn: Path) -> None:
    here = drawn
    path = npz(here / "<script>alert('x')<.npz")
    assert first("judge", path, "--out", "page").code == 0
    assert "<script" not in (here / "page" / "index.html").read_text("utf-8")
