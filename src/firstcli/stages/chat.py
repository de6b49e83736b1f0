"""How the samples of a run are encoded: with which chat template, if any, and with which end."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from firstcli.data.chat import ChatFormat, has_template
from firstcli.data.encoding import Encoding
from firstcli.workspace.run import Run, once_per_run
from firstcli.workspace.units import Role


@once_per_run
def chat_format(run: Run, role: Role, evaluation: str = "") -> ChatFormat | None:
    """Return how a role's samples are rendered; None if they are no chat.

    Args:
        run: the run.
        role: teacher or student.
        evaluation: the evaluation that has the samples; by default those of training.

    Raises:
        UserError: no tokenizer has a template, or the role's template does not suit.
    """
    task, where = run.stated_task(evaluation), run.task_key(evaluation)
    return run.tokenizers.chat_format(role, task, where)


def encoding(run: Run, role: Role, where: str, evaluation: str = "") -> Encoding:
    """Return how a role's samples are encoded.

    Args:
        run: the run.
        role: teacher or student.
        where: the recipe's key and the role, which begin messages.
        evaluation: the evaluation that has the samples; by default those of training.
    """
    drop = run.recipe.train.doubled_bos == "drop"
    chat = chat_format(run, role, evaluation)
    apart = role == "teacher" and run.stated_task(evaluation).build().has_teacher_prompts
    return Encoding(run.tokenizers.of(role), where, drop, chat=chat, for_teacher=apart)


def encoding_with(
    run: Run, tokenizer: PreTrainedTokenizerBase, where: str, evaluation: str = ""
) -> Encoding:
    """Return how samples are encoded with the tokenizer of a trained model's folder.

    Args:
        run: the run.
        tokenizer: the tokenizer, with the template with which the model was trained.
        where: what begins messages.
        evaluation: the evaluation that has the samples; by default those of training.
    """
    drop = run.recipe.train.doubled_bos == "drop"
    is_chat = chat_format(run, "student", evaluation) is not None
    if not evaluation and learns_conversations(run):
        is_chat = True
    system = run.stated_task(evaluation).system
    chat = ChatFormat(tokenizer, system) if is_chat else None
    return Encoding(tokenizer, where, drop, chat=chat)


def learns_conversations(run: Run) -> bool:
    """Whether the training samples are conversations, which are always rendered by a template."""
    if run.recipe.train.task.plugin.has_candidates:
        return False
    return any(sample.messages for sample in run.training.train[:1])


def end_of(run: Run, role: Role) -> tuple[str, int] | None:
    """Return the token that ends a role's responses in training, and its id; None without one."""
    chat, tokenizer = chat_format(run, role), run.tokenizers.of(role)
    if chat is None and learns_conversations(run) and has_template(tokenizer):
        chat = ChatFormat(tokenizer)
    if chat is not None:
        return None if chat.end is None or chat.end_id is None else (chat.end, chat.end_id)
    eos = tokenizer.eos_token_id
    return None if eos is None else (str(tokenizer.eos_token), int(eos))
