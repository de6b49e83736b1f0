"""Write the shifted test questions of the studies on real sets (`docs/study-protocol.md`).

    cd benchmarks/plus
    python shifts.py trec/test.jsonl shifts/trec
    python shifts.py sst2/test.jsonl shifts/sst2 --text sentence
    python shifts.py boolq/dev.jsonl shifts/trec --unanswered trec/test.jsonl

Each shift becomes one file, such as `typos.jsonl`, with the columns of the original. The last
command writes `noanswer.jsonl`: other questions with the choices of the test questions, none of
which is right. Their answer is the first choice, because a row needs one; it means nothing.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from firstcli.api import Sample
from firstcli.augmenters.perturb import Change, Perturb
from firstcli.data.copies import copies_of
from firstcli.plugins.calls import augmenter

SEED = 4321  # unlike that of the recipes, so that no shift repeats the copies of a training
SHIFTS: Mapping[str, tuple[Change, float]] = {
    "typos": ("typo", 0.5),
    "case": ("case", 0.5),
    "drop": ("drop", 0.3),
}
"""The kind of `perturb`, and the probability that a word changes."""

_WORDS = """
    a about an and any are as at be been being but by can could did do does for from had has have
    he her his how i if in into is it its me my of on or our she should so some than that the their
    them there these they this those to us was we were what when where which who whom whose why
    will with would you your 's 're 've 'll 'd
"""
FUNCTION_WORDS = frozenset(_WORDS.split())

Row = dict[str, Any]


def perturbed(texts: Sequence[str], kind: Change, level: float) -> list[str]:
    """Change words of each text, all but its last with this probability.

    Args:
        texts: the test questions.
        kind: what happens to a word, a kind of `perturb`.
        level: the probability that a word changes.
    """
    changes = augmenter("perturb", Perturb.Options(levels=[level], kinds=[kind]))
    samples = [Sample(text, "", f"test-{place}") for place, text in enumerate(texts)]
    return [copy.prompt for copy in copies_of(samples, None, [changes], SEED)]


def keywords(text: str) -> str:
    """Return the words of a text that someone would type into a search box.

    A text without any is only written in lower case.
    """
    words = [word for word in text.lower().split() if word not in FUNCTION_WORDS]
    return " ".join(word for word in words if re.search(r"\w", word)) or text.lower()


def main() -> None:
    """Write the files of one set of questions."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("questions", type=Path, help="test questions, one JSON object per line")
    parser.add_argument("folder", type=Path, help="where the files are written")
    parser.add_argument("--text", default="question", help="the column of the text")
    parser.add_argument(
        "--unanswered", type=Path, metavar="FILE", help="give the questions the choices of FILE"
    )
    chosen = parser.parse_args()
    rows = _rows(chosen.questions)
    texts = [row[chosen.text] for row in rows]
    chosen.folder.mkdir(parents=True, exist_ok=True)
    if chosen.unanswered:
        choices = _rows(chosen.unanswered)[0]["choices"]
        unanswered = [
            {"id": f"noanswer-{place}", "question": text, "choices": choices, "answer": 0}
            for place, text in enumerate(texts)
        ]
        _write(chosen.folder / "noanswer.jsonl", unanswered)
        return
    shifted = {name: perturbed(texts, *change) for name, change in SHIFTS.items()}
    shifted["keywords"] = [keywords(text) for text in texts]
    for name, new in shifted.items():
        changed = [{**row, chosen.text: text} for row, text in zip(rows, new, strict=True)]
        _write(chosen.folder / f"{name}.jsonl", changed)


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


if __name__ == "__main__":
    main()
