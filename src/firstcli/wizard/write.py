"""The text of a recipe: complete, commented, and valid as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from firstcli.wizard.look import Contents, printable
from firstcli.wizard.roles import (
    ChoiceQuestions,
    Conversations,
    Guess,
    LabelledTexts,
    Prompts,
    Responses,
)
from firstcli.wizard.source import TEST, DataSource

TEST_SHARE = 0.2
FEW_ROWS = 5000  # below this many training rows, a fifth instead of a tenth is held out
LISTED_LABELS = 20  # the comment lists no more
CONTEXT = 8192  # tokens that the default models can take; few texts have more than characters


@dataclass(frozen=True, slots=True)
class Models:
    """The checkpoints of teacher and student: hub ids, or folders."""

    teacher: str = "HuggingFaceTB/SmolLM2-360M"
    student: str = "HuggingFaceTB/SmolLM2-135M"


DEFAULT_MODELS = Models()
CHAT_MODELS = Models(f"{DEFAULT_MODELS.teacher}-Instruct", f"{DEFAULT_MODELS.student}-Instruct")
"""The same models with a chat template."""


def default_models(guess: Guess) -> Models:
    """Return the models of a recipe whose user names none."""
    return CHAT_MODELS if isinstance(guess, Conversations | Prompts) else DEFAULT_MODELS


def recipe_text(
    source: DataSource, table: Contents, guess: Guess, models: Models, folder: Path | None = None
) -> str:
    """Return a commented recipe for a table.

    Args:
        source: the files.
        table: what they contain.
        guess: the columns and with them the task.
        models: the checkpoints.
        folder: the recipe's folder, from which relative paths start; default: the current one.
    """
    has_template = any(map(_has_template, (models.teacher, models.student)))
    lines = [
        *_head(source, table, guess),
        f"name: {_scalar(source.name)}  # the run's folder is runs/{source.name}",
        "seed: 1234",
        "",
        "train:",
        "  task:",
        *_indented(_task(source, table, guess, folder, has_template), 4),
        *_indented(_chat(guess, has_template), 4),
        *_indented(_train(table, guess, models), 2),
        "",
        *_evaluate(guess, has_template),
        *_METRICS,
        "",
        *_models(models, guess, folder),
        "",
        *_knowledge(guess),
        *_arms(guess),
    ]
    return "\n".join(lines) + "\n"


def _head(source: DataSource, table: Contents, guess: Guess) -> Iterator[str]:
    what = {
        LabelledTexts: "Which label does a text have?",
        ChoiceQuestions: "Which choice answers a question?",
        Responses: "Which response follows a prompt?",
        Prompts: "What does the teacher answer to a prompt?",
        Conversations: "What does the assistant say next?",
    }[type(guess)]
    yield f"# {what} {table.rows:,} rows of {printable(source.given.name)}."
    yield "#"
    yield "#   first plan recipe.yaml      what would run, and whether it can work"
    yield "#   first report recipe.yaml    train, evaluate and compare all models"
    if isinstance(guess, LabelledTexts):
        yield f'#   first predict runs/{source.name} "..."    answer a new text'
    yield ""


def _task(
    source: DataSource, table: Contents, guess: Guess, folder: Path | None, has_template: bool
) -> Iterator[str]:
    path = f"  path: {_scalar(_relative(source.path, folder))}"
    if isinstance(guess, LabelledTexts):
        yield from ("name: classification", "options:", path)
        yield f"  text: {_columns(guess.texts)}"
        yield f"  label: {_scalar(guess.label)}"
        yield from _indented(_labels(table, guess.label), 2)
        yield '  # prompt: "{text}\\n\\nLabel:"  # {labels} would list the labels'
    elif isinstance(guess, ChoiceQuestions):
        yield from ("name: multiple-choice", "options:", path)
        yield f"  question_column: {_scalar(guess.question)}"
        yield f"  choices_column: {_columns(guess.choices)}"
        yield f"  answer_column: {_scalar(guess.label)}"
        if guess.reading:
            yield f"  answer_as: {guess.reading}"
        if guess.context:
            prompt = f"{{{guess.context}}}\n{{question}}\n{{choices}}\nAnswer:"
            yield f"  prompt: {_quoted(prompt)}"
        if guess.group:
            yield f"  # group: {_scalar(guess.group)}  # the report then shows each group, too"
    elif isinstance(guess, Conversations):
        yield "# Models read conversations through their chat template: both checkpoints need one."
        yield from ("name: instruction", "options:", path)
        yield f"  messages: {_scalar(guess.label)}"
        yield "  supervise: all  # all turns of the assistant, or the last"
    else:
        yield from ("name: instruction", "options:", path)
        yield f"  prompt: {_quoted(_prompt_of(guess.texts, has_template))}"
        if isinstance(guess, Prompts):
            yield '  response: ""  # no row has one: the teacher writes it, see `knowledge`'
        else:
            space = "" if has_template else " "
            yield f"  response: {_quoted(f'{space}{{{guess.label}}}')}"
    if TEST not in source.others and not isinstance(guess, Responses):
        yield f"  test: {TEST_SHARE}  # this share of the questions is kept for the evaluation"


def _chat(guess: Guess, has_template: bool) -> Iterator[str]:
    """Yield the keys that render prompts as a chat, as comments if no template is seen.

    Conversations are always rendered.
    """
    if isinstance(guess, Conversations):
        if not has_template:
            yield "# If neither has one, write a file as in docs/chat.md and state it in `model`:"
            yield "# model: {family: causal-lm, checkpoint: ..., chat_template: chat.jinja}"
        return
    hidden = "" if has_template else "# "
    yield f"{hidden}chat: auto  # prompts are the user's messages, in the models' chat template"
    yield "# system: You are helpful.  # a system message before each prompt, in a chat"


def lacks_template(guess: Guess, models: Models) -> str:
    """Say that local models lack the chat template that conversations need; empty if they do not.

    Args:
        guess: the columns.
        models: the checkpoints; those of the hub are not looked at.
    """
    checkpoints = (models.teacher, models.student)
    local = all(Path(checkpoint).expanduser().is_dir() for checkpoint in checkpoints)
    if not (isinstance(guess, Conversations) and local) or any(map(_has_template, checkpoints)):
        return ""
    return (
        "conversations are read through a chat template, and neither model has one; choose an "
        "instruct model, or add `chat_template: FILE` to the `model` of the recipe"
    )


def _has_template(checkpoint: str) -> bool:
    if checkpoint in (CHAT_MODELS.teacher, CHAT_MODELS.student):
        return True
    folder = Path(checkpoint).expanduser()
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        return bool(config.get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False  # the plan says what is wrong with the checkpoint


def _prompt_of(columns: Sequence[str], is_chat: bool) -> str:
    """Return a template with one paragraph per column; outside a chat, the last asks to respond."""
    named = [f"{name.capitalize()}: {{{name}}}" for name in columns]
    parts = named if len(columns) > 1 else [f"{{{columns[0]}}}"]
    return "\n".join([*parts, *([] if is_chat else ["Response:"])])


def _labels(table: Contents, label: str) -> Iterator[str]:
    """Yield a comment that shows how labels are listed and described."""
    names = sorted({name.strip() for name in table.columns[label].values or ()})
    yield "# The labels are those of the training rows. To list them with descriptions, write:"
    yield "# labels:"
    yield from (f"#   {_scalar(name)}: what it means" for name in names[:LISTED_LABELS])
    if len(names) > LISTED_LABELS:
        yield f"#   ... and {len(names) - LISTED_LABELS} more"


def _train(table: Contents, guess: Guess, models: Models) -> Iterator[str]:
    share = 0.2 if table.rows < FEW_ROWS else 0.1
    if not isinstance(guess, Prompts):  # the teacher's responses are all trained on
        yield f"validation: {share}  # held out from training; temperatures are fitted on it"
    longest = max(table.columns[name].lengths.quantile(1.0) for name in guess.texts)
    if longest > min(map(_context, (models.teacher, models.student))):
        yield f"too_long: drop  # the longest text has about {longest:,} characters"


def _evaluate(guess: Guess, has_template: bool) -> Iterator[str]:
    if isinstance(guess, Responses):
        yield "# Responses of any length cannot be scored, so models are evaluated on questions"
        yield "# with choices. This task is downloaded; read your own with `multiple-choice`."
        yield "evaluate:"
        chat = ", chat: auto" if has_template or isinstance(guess, Conversations) else ""
        yield f"  - task: {{name: openbook-qa{chat}}}"
        yield ""
    else:
        yield "# Without `evaluate`, all models are evaluated on the test rows of the task above."
        yield ""


_METRICS = (
    "metrics:",
    "  bins: 10  # of the ECE",
    "  # Find the confidence from which answers are right in 90 % of cases:",
    "  # target_accuracy: 0.9",
)


def _models(models: Models, guess: Guess, folder: Path | None) -> Iterator[str]:
    yield "# A checkpoint is an id of the Hugging Face hub, or a local folder such as models/mine."
    yield "# Teacher and student need the same tokenizer."
    if models in (DEFAULT_MODELS, CHAT_MODELS):
        yield "# These two train in float32 on one GPU with 24 GB, at 16 bytes per parameter."
    yield "teacher:"
    yield f"  model: {{family: causal-lm, checkpoint: {_checkpoint(models.teacher, folder)}}}"
    if isinstance(guess, Prompts):
        yield "  # No `finetune`: there are no responses to train it on. Take one that answers."
    else:
        yield f"  finetune: {{epochs: 3, learning_rate: {_rate(models.teacher)}, batch_size: 32}}"
    if not isinstance(guess, Responses):
        yield "  posthoc: {name: logit-temperature}  # also evaluate `teacher + T`"
    yield ""
    yield "student:"
    yield f"  model: {{family: causal-lm, checkpoint: {_checkpoint(models.student, folder)}}}"
    yield f"  training: {{epochs: 3, learning_rate: {_rate(models.student)}, batch_size: 32}}"


def _knowledge(guess: Guess) -> Iterator[str]:
    if isinstance(guess, Prompts):
        yield "knowledge:"
        yield "  responses: teacher  # it answers each prompt; students learn its probabilities"
        yield "  sampling: {temperature: 0.7, top_p: 0.9, max_new_tokens: 256}"
        yield ""


def _arms(guess: Guess) -> Iterator[str]:
    if isinstance(guess, Prompts):
        yield "# Other recalibrators are fitted on responses of the data, and there are none."
        yield "arms:"
        yield "  distill: {recalibrator: {name: none}}"
        return
    # a temperature is fitted where one of several answers is chosen
    posthoc = [] if isinstance(guess, Responses) else ["posthoc: {name: logit-temperature}"]
    yield "# One student per arm: learned from the labels, from the teacher's probabilities, and"
    yield "# from these after recalibration. Remove an arm to save its training."
    if posthoc:
        yield "# `posthoc` also evaluates each student with a fitted temperature, as `NAME + T`."
    yield "arms:"
    yield f"  fine-tune: {{{', '.join(['learn: labels', *posthoc])}}}"
    yield f"  distill: {{{', '.join(['recalibrator: {name: none}', *posthoc])}}}"
    yield "  first-logit:"
    recalibrator = "recalibrator: {name: logit-temperature, options: {criterion: nll}}"
    yield from _indented([recalibrator, *posthoc], 4)
    if isinstance(guess, LabelledTexts | ChoiceQuestions):
        yield "# For texts that will differ from these rows, compare two more students, which also"
        yield "# learn damaged copies of each prompt: from labels, or from the teacher, whose"
        yield "# extraction then takes five times as long."
        yield f"#   fine-tune-copies: {{{', '.join(['learn: labels', 'augment: true', *posthoc])}}}"
        yield "#   first-plus: {preset: first-plus}"


_RATES = ((3e7, "1e-3"), (1.5e8, "1e-4"), (1e9, "5e-5"))
_KNOWN = {
    name: count
    for models in (DEFAULT_MODELS, CHAT_MODELS)
    for name, count in ((models.teacher, 3.6e8), (models.student, 1.35e8))
}


def _rate(checkpoint: str) -> str:
    """Return a learning rate that suits the number of parameters: the paper's from 1 B on."""
    count = _KNOWN.get(checkpoint) or _parameters(Path(checkpoint).expanduser()) or 1e9
    return next((rate for limit, rate in _RATES if count < limit), "2e-5")


def _parameters(folder: Path) -> int:
    """Return the number of weights in a folder's safetensors files; 0 if there are none."""
    count = 0
    for path in folder.glob("*.safetensors"):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            shapes = [entry["shape"] for key, entry in header.items() if key != "__metadata__"]
            count += sum(_product(shape) for shape in shapes)
        except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
            return 0  # the plan says what is wrong with the checkpoint
    return count


def _product(shape: Iterable[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _context(checkpoint: str) -> int:
    """Return how many tokens a model can take, or the default models' number if it is unknown."""
    try:
        config = Path(checkpoint).expanduser() / "config.json"
        return int(json.loads(config.read_text("utf-8"))["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        return CONTEXT


def _checkpoint(checkpoint: str, folder: Path | None) -> str:
    path = Path(checkpoint).expanduser()
    return _scalar(_relative(path, folder) if path.is_dir() else checkpoint)


def _relative(path: Path, folder: Path | None) -> str:
    """Return a path as a recipe in `folder` states it; an absolute path stays absolute."""
    if folder is None or path.is_absolute() or str(path).startswith("~"):
        return path.as_posix()
    return Path(os.path.relpath(path, folder)).as_posix()


def _columns(names: str | Sequence[str]) -> str:
    if isinstance(names, str) or len(names) == 1:
        return _scalar(names if isinstance(names, str) else names[0])
    return f"[{', '.join(map(_scalar, names))}]"


def _scalar(value: Any) -> str:
    """Write a value as YAML on one line, plain where that is read as the same text."""
    if isinstance(value, str) and value.isprintable():
        plain = yaml.safe_dump([value], width=10**9, allow_unicode=True, default_flow_style=True)
        return plain.strip()[1:-1]
    return _quoted(value)


def _quoted(value: str) -> str:
    """Write text as YAML in double quotes, with escapes."""
    text = yaml.safe_dump(value, width=10**9, allow_unicode=True, default_style='"')
    return text.removesuffix("\n")


def _indented(lines: Iterable[str], width: int) -> Iterator[str]:
    yield from (" " * width + line for line in lines)
