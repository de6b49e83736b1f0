"""Write a task of lm-evaluation-harness for a run's questions: YAML, data, and the ECE.

The harness scores the text of each choice. firstcli's confidence refers to the first token in
which the candidates differ, so the task's choices are the texts of these tokens, where the
tokenizer gives the same tokens for them as for the whole candidates. Otherwise they are the whole
candidates, and the harness compares their probabilities.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from firstcli.api import Sample
from firstcli.data.encoding import EncodedQuestion, encode_questions
from firstcli.errors import UserError
from firstcli.export import lm_eval_hook
from firstcli.export.folder import new_folder
from firstcli.export.source import ExportSource
from firstcli.metrics.records import EvalRecords
from firstcli.stages.chat import encoding_with
from firstcli.workspace.run import Run, as_yaml
from firstcli.workspace.units import records_path

HOOK = "firstcli_ece"
"""Name of the module beside the YAML."""


@dataclass(frozen=True, slots=True)
class HarnessTask:
    """A task that was written."""

    name: str
    questions: int
    whole: bool
    """Whether the choices are whole candidates instead of their first differing tokens."""


def write_tasks(
    source: ExportSource, tokenizer: PreTrainedTokenizerBase, target: Path
) -> list[HarnessTask]:
    """Write one task per evaluation into a new folder.

    Args:
        source: the exported model of a run.
        tokenizer: its tokenizer.
        target: the folder to create.

    Raises:
        UserError: there is no run whose questions could be written.
    """
    run, model = source.run, source.model
    if run is None or model is None:
        raise UserError("--lm-eval: needs the run's questions; give the run folder with --arm")
    tasks = []
    with new_folder(target) as work:
        for section in run.recipe.evaluate:
            path = records_path(run.folder, section.name, model)
            if path.is_file():
                tasks.append(_write_task(run, section.name, path, tokenizer, work))
        if not tasks:
            raise UserError(
                f"--lm-eval: '{source.title}' was not evaluated; run `first eval` with the recipe"
            )
        code = Path(lm_eval_hook.__file__).read_text("utf-8")
        bins = f"BINS = {run.recipe.metrics.bins}"
        (work / f"{HOOK}.py").write_text(re.sub(r"(?m)^BINS = \d+$", bins, code), "utf-8")
    return tasks


def _write_task(
    run: Run, evaluation: str, records: Path, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> HarnessTask:
    known = set(EvalRecords.load(records).ids)
    samples = [s for s in run.evaluation_samples(evaluation) if s.id in known]
    where = f"evaluate '{evaluation}' (exported tokenizer)"
    encoding = encoding_with(run, tokenizer, where, evaluation)
    questions = encode_questions(samples, encoding)
    call: Any = tokenizer
    encode = partial(call, add_special_tokens=encoding.chat is None)
    if encoding.chat is not None:  # the texts are rendered here, not by the harness
        samples = [*map(encoding.chat.rendered, samples)]
    pairs = list(zip(samples, questions, strict=True))
    rows = [_by_token(sample, question, encode) for sample, question in pairs]
    whole = None in rows
    if whole:
        rows = [_row(sample, sample.prompt, sample.candidates) for sample in samples]
    name = re.sub(r"\W+", "_", f"{run.recipe.name}_{evaluation}")
    lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    (folder / f"{name}.yaml").write_text(_task_yaml(name), "utf-8")
    return HarnessTask(name, len(rows), whole)


def _row(sample: Sample, context: str, choices: Iterable[str]) -> dict[str, Any]:
    answer = -1 if sample.answer is None else sample.answer
    return {"id": sample.id, "context": context, "choices": list(choices), "answer": answer}


def _by_token(
    sample: Sample, question: EncodedQuestion, encode: Callable[..., Any]
) -> dict[str, Any] | None:
    """Return a question whose choices are single tokens; None if their texts do not say so."""
    position, contexts, pieces = len(question.input_ids), [], []
    for candidate in sample.candidates:
        text = sample.prompt + candidate
        encoded = encode(text, return_offsets_mapping=True)
        if len(encoded["input_ids"]) <= position:
            return None
        start, end = encoded["offset_mapping"][position]
        start = min(start, encoded["offset_mapping"][position - 1][1])  # blanks in between
        contexts.append(text[:start])
        pieces.append(text[start:end])
    if len({*contexts}) > 1 or len({*pieces}) < len(pieces):
        return None
    # Tokens that all choices share, such as a blank, change the confidence in none of them.
    expected = question.input_ids.tolist()
    for piece, token in zip(pieces, question.candidate_ids, strict=True):
        before, after = _harness_tokens(contexts[0], piece, encode)
        if [*before, *after] != [*expected, token]:
            return None
    return _row(sample, contexts[0], pieces)


def _harness_tokens(
    context: str, continuation: str, encode: Callable[..., Any]
) -> tuple[list[int], list[int]]:
    """Encode a pair as lm-evaluation-harness does (`TemplateLM._encode_pair`)."""
    stripped = context.rstrip()
    before: Sequence[int] = encode(stripped)["input_ids"]
    whole: Sequence[int] = encode(context + continuation)["input_ids"]
    return list(whole[: len(before)]), list(whole[len(before) :])


def _task_yaml(name: str) -> str:
    task: dict[str, Any] = {
        "task": name,
        "custom_dataset": f"!function {HOOK}.load",
        "dataset_kwargs": {"file": f"{name}.jsonl"},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "process_results": f"!function {HOOK}.score",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "ece", "aggregation": f"!function {HOOK}.ece", "higher_is_better": False},
        ],
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }
    # YAML tags must not be quoted.
    return re.sub(r"'(!function [\w.]+)'", r"\1", as_yaml(task))
