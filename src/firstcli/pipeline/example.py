"""Show one training question as a model reads it."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from firstcli.api import JSON

_SHOWN = 600
"""Characters of the prompt that are shown; of a longer one, the middle is left out."""


def example_text(example: Mapping[str, JSON]) -> Text:
    """Return what `stages.example.encoded_example` found, as lines."""
    prompt = str(example["prompt"])
    if len(prompt) > _SHOWN:
        prompt = f"{prompt[: _SHOWN // 2]} [...] {prompt[-_SHOWN // 2 :]}"
    listed = ", ".join(_token(*candidate) for candidate in example["candidates"])
    more = example["count"] - len(example["candidates"])
    lines = [
        *([f"Answers: {example['note']}."] if example["note"] else []),
        f"Example: the first training question, as the {example['role']} reads it",
        *(f"  | {line}" for line in prompt.split("\n")),
        f"  response {example['response']!r}; the answer is decided at token "
        f"{example['position']} (from 0), where it has {_token(*example['answer'])}",
        f"  candidates there: {listed}{f' and {more} more' if more else ''}",
    ]
    return Text("\n".join(map(_printable, lines)))


def _token(text: str, token: str, id: int) -> str:
    """Return a candidate and its token: `' yes' = Ġyes (3763)`."""
    return f"{text!r} = {token} ({id})"


def _printable(line: str) -> str:
    """Replace control characters, which a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
