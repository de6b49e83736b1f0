"""Show training samples as a model reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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


def samples_text(samples: Sequence[Mapping[str, JSON]]) -> Text:
    """Return what `stages.example.encoded_samples` found: every token, with marks and colours."""
    text = Text()
    for sample in samples:
        tokens = sample["tokens"]
        learned = sum(token["supervised"] for token in tokens)
        place = next((i for i, token in enumerate(tokens) if token["answer"]), None)
        decided = "" if place is None else f", the answer is decided at token {place} (from 0)"
        readers = " and ".join(sample["read_by"])
        verb = "reads" if len(sample["read_by"]) == 1 else "read"
        head = f"Sample '{sample['id']}', as the {readers} {verb} it: {len(tokens)} tokens, "
        text.append(_printable(f"{head}{learned} supervised{decided}"), style="bold")
        text.append("\n  ")
        for token in tokens:
            for piece, style in _marked(token):
                text.append(piece, style=style)
        text.append("\n")
    text.append(_LEGEND)
    return text


_LEGEND = (
    "Tokens end at |. [Supervised] tokens are learned; the answer is decided at the <<marked>> one."
)


def _marked(token: Mapping[str, JSON]) -> Iterator[tuple[str, str]]:
    """Yield the parts of a token and their styles; a line ends after its last line end."""
    text = token["text"].replace("\n", "\\n")
    breaks = "\n  " if token["text"].endswith("\n") else ""
    if token["answer"]:
        yield _printable(f"<<{text}>>"), "bold reverse green"
    elif token["supervised"]:
        yield _printable(f"[{text}]"), "green"
    else:
        yield _printable(text), ""
    yield "|", "dim"
    yield breaks, ""


def _token(text: str, token: str, id: int) -> str:
    """Return a candidate and its token: `' yes' = Ġyes (3763)`."""
    return f"{text!r} = {token} ({id})"


def _printable(line: str) -> str:
    """Replace control characters, which a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
