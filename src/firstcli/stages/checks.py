"""Checks before any work that units of several stages have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from firstcli.errors import UserError, shortened

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

    from firstcli.api import Sample
    from firstcli.recipe.evaluations import Evaluation
    from firstcli.recipe.references import TaskRef
    from firstcli.workspace.run import Run
    from firstcli.workspace.units import Part, Role

    IdArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class SharedCheck:
    """A check that runs once for all units that need it."""

    name: str
    run: Callable[[Run], object]
    """Warns, or raises UserError; returns a JSON value, `NOT_REMEMBERED` if it could not check."""
    heavy: bool = False
    """Whether it loads weights, which takes long."""


def _check_tokenizers(run: Run) -> None:
    from firstcli.stages import chat, encoded, role_models, shared_tokens

    teacher, student = role_models.tokenizer(run, "teacher"), role_models.tokenizer(run, "student")
    talks = any(sample.messages for sample in run.training.train[:1])
    if talks and teacher.chat_template != student.chat_template:
        raise UserError(
            "teacher and student have different chat templates, so they would read different "
            "texts; give both models the same chat_template"
        )
    same = encoded.identity_of(run, teacher) == encoded.identity_of(run, student)
    if same and not _have_different_prompts(run):
        return
    shared = shared_tokens.shared_vocabulary(run)
    teachers = {id: token for token, id in teacher.get_vocab().items() if id < shared}
    students = {id: token for token, id in student.get_vocab().items() if id < shared}
    ids = teachers.keys() | students.keys()
    if differing := [id for id in ids if teachers.get(id) != students.get(id)]:
        first = min(differing)
        raise UserError(
            f"teacher and student have incompatible tokenizers: {len(differing)} of the {shared} "
            f"shared ids differ, the first is {first}: {teachers.get(first)!r} for the teacher, "
            f"{students.get(first)!r} for the student; {_same_tokenizer(run)}"
        )
    eos, is_chat = shared_tokens.exchanged_eos(run), chat.chat_format(run, "student") is not None
    if eos:
        run.console.warn(
            "teacher and student end responses with different tokens, "
            f"{' and '.join(repr(token) for token in _ends(run))}: students learn the teacher's "
            f"probability of its end as that of their own; {_ADVICE_ON_ENDS[is_chat]}"
        )
    parts: tuple[Part, ...] = ("train", "validation", "unlabelled", "copies")
    for part in parts:
        if run.samples_of(part):
            _compare_tokens(run, part)


def _have_different_prompts(run: Run) -> bool:
    """Return whether teacher and student read different prompts, or in different templates."""
    from firstcli.stages import chat

    if run.recipe.train.task.build().has_teacher_prompts:
        return True
    roles: tuple[Role, ...] = ("teacher", "student")
    formats = [chat.chat_format(run, role) for role in roles]
    return len({each.identity for each in formats if each is not None}) > 1


def require_same_tokens(run: Run, part: Part) -> None:
    """Require that teacher and student encode responses alike that did not exist before.

    The check of the tokenizers compares all other parts.

    Raises:
        UserError: they encode one differently.
    """
    from firstcli.stages import encoded, role_models

    roles: tuple[Role, ...] = ("teacher", "student")
    teacher, student = (
        encoded.identity_of(run, role_models.tokenizer(run, role)) for role in roles
    )
    is_new = part == "written" or (part == "copies" and run.recipe.writing is not None)
    if is_new and (teacher != student or _have_different_prompts(run)):
        _compare_tokens(run, part)


def _compare_tokens(run: Run, part: Part) -> None:
    import numpy as np

    from firstcli.data.sequences import Selected
    from firstcli.stages import inputs, role_models, shared_tokens

    teacher, student = role_models.tokenizer(run, "teacher"), role_models.tokenizer(run, "student")
    eos, different = shared_tokens.exchanged_eos(run), _have_different_prompts(run)
    ours = inputs.training_rows(run, "teacher", part)
    theirs = inputs.training_rows(run, "student", part)
    # Samples that either of them drops as too long are not compared.
    _, ours_at, theirs_at = np.intersect1d(
        ours.indices, theirs.indices, assume_unique=True, return_indices=True
    )
    for sample, other in zip(Selected(ours, ours_at), Selected(theirs, theirs_at), strict=True):
        expected, found = sample.input_ids, other.input_ids
        if different:  # each reads its own prompt
            expected, found = sample.targets, other.targets
        if part == "unlabelled":  # whose last token is a placeholder
            expected, found = expected[:-1], found[:-1]
        elif eos and len(sample.gaps):
            expected = np.where(expected == eos[0], np.int32(eos[1]), expected)
        elif eos and not run.recipe.answers_only:
            expected = np.append(expected[:-1], np.int32(eos[1]))
        if not np.array_equal(expected, found):
            raise UserError(
                f"teacher and student encode sample '{sample.id}' differently: "
                f"{_first_difference(expected, found, teacher, student)}; {_same_tokenizer(run)}"
            )


def _same_tokenizer(run: Run) -> str:
    """Return what to do about different tokenizers."""
    advice = "choose models with the same tokenizer"
    if not run.recipe.train.task.build().has_candidates:
        return advice
    return f"{advice}, or set knowledge.over: candidates"


_ADVICE_ON_ENDS = {
    False: "set student.eos: teacher to let them end with the teacher's token",
    True: "give both models the same chat_template to let them end with the same token",
}
"""By whether the samples are a chat."""


def _ends(run: Run) -> list[str | None]:
    """Return the tokens that end the responses of teacher and student."""
    from firstcli.stages import chat

    roles: tuple[Role, ...] = ("teacher", "student")
    return [end[0] if (end := chat.end_of(run, role)) else None for role in roles]


def _first_difference(
    ours: IdArray,
    theirs: IdArray,
    teacher: PreTrainedTokenizerBase,
    student: PreTrainedTokenizerBase,
) -> str:
    """Show the first tokens that differ, with two before and two after them.

    Args:
        ours: the teacher's tokens, (L,).
        theirs: the student's tokens, (M,).
        teacher: the teacher's tokenizer.
        student: the student's tokenizer.
    """
    pairs = enumerate(zip(ours, theirs, strict=False))
    first = next((i for i, (one, other) in pairs if one != other), min(len(ours), len(theirs)))
    shown = slice(max(first - 2, 0), first + 3)
    tokens, others = (
        tokenizer.convert_ids_to_tokens(ids[shown].tolist())
        for tokenizer, ids in ((teacher, ours), (student, theirs))
    )
    return (
        f"token {first} is the first that differs, in {tokens} for the teacher and {others} for "
        "the student"
    )


def _check_top_k(run: Run) -> None:
    from firstcli.stages import shared_tokens

    shared = shared_tokens.shared_vocabulary(run)
    if run.recipe.knowledge.draws is None and run.recipe.knowledge.top_k > shared:
        raise UserError(
            f"knowledge.top_k: {run.recipe.knowledge.top_k} is more than the {shared} tokens that "
            "teacher and student share"
        )


MOST_OVERLAP = 0.5
"""Share of an evaluation's questions that may also be in the training split. Above it, the numbers
say more about memory than about new questions, and nothing but a mistake is likely."""


def _check_overlap(run: Run) -> None:
    """Compare each evaluation with the training data.

    Raises:
        UserError: most questions of an evaluation are also in the training split, and the recipe
            does not state that it is meant to be evaluated.
    """
    from firstcli.workspace import overlap

    mistakes = []
    _ = run.training  # its mistakes first: an evaluation with the same mistake is not named here
    for evaluation in run.recipe.evaluate:
        if evaluation.split == evaluation.task.plugin.held_out_split:
            continue  # it is the part on which nothing is trained
        name, count = f"evaluate '{evaluation.name}'", len(run.evaluation_samples(evaluation.name))
        if shared := overlap.with_training(run, evaluation.name):
            problem = f"{name}: {_part(shared, count)} are also in the training split"
            if shared / count <= MOST_OVERLAP:
                run.console.warn(
                    f"{problem}, so its numbers will be optimistic; remove these rows from one of "
                    "the two"
                )
            elif evaluation.split == "train":
                run.console.warn(
                    f"{problem}, as `split: train` states; its numbers will show what the models "
                    "remember, not how they answer new questions"
                )
            else:
                mistakes.append(f"{problem}; {_advice_on_overlap(run, evaluation)}")
        if shared := overlap.with_unlabelled(run, evaluation.name):
            run.console.warn(
                f"{name}: {_part(shared, count)} are also among the unlabelled samples; students "
                "learn the teacher's answers to them, though no labels (transductive learning), so "
                "new questions may go worse; remove these rows from the unlabelled data"
            )
        if shared := overlap.with_copies(run, evaluation.name):
            run.console.warn(f"{name}: {_part(shared, count)} {_of_copies(run)}")
    if mistakes:
        raise UserError(*mistakes)


def warn_of_written_copies(run: Run) -> None:
    """Compare each evaluation with copies that did not exist when the plan was checked."""
    from firstcli.workspace import overlap

    for evaluation in run.recipe.evaluate if run.recipe.writing else ():
        if shared := overlap.with_copies(run, evaluation.name):
            count = len(run.evaluation_samples(evaluation.name))
            name = f"evaluate '{evaluation.name}'"
            run.console.warn(f"{name}: {_part(shared, count)} {_of_copies(run)}")


def _of_copies(run: Run) -> str:
    """Return what models learn of questions that are also copies, in words."""
    arms, teacher = run.recipe.arms.values(), run.recipe.teacher
    tuned = teacher is not None and teacher.finetune is not None and teacher.finetune.augment
    learners = {arm.learn for arm in arms if arm.augment} | ({"labels"} if tuned else set())
    found = "are also among the copies of train.augment;"
    if "labels" not in learners:
        return (
            f"{found} students learn the teacher's answers to them, though not the right ones, so "
            "new questions may go worse"
        )
    whose = "the teacher" if tuned else "an arm of `learn: labels`"
    return (
        f"{found} {whose} is trained to answer them with the labels of the copied samples, which "
        "are not those of the evaluation, so the numbers may be too low or too high; remove these "
        "rows from the evaluation, or leave out `augment` there"
    )


def _part(shared: int, count: int) -> str:
    """Return how many of an evaluation's questions are shared, in words."""
    if shared == count:
        return f"all {count:,} questions"
    return f"{shared:,} of {count:,} questions ({100 * shared / count:.1f} %)"


def _advice_on_overlap(run: Run, evaluation: Evaluation) -> str:
    """Return how to evaluate on other questions than those of the training split."""
    trained = run.recipe.train.task
    can_cut = bool(trained.advice_on_test_split)
    if can_cut and getattr(trained.options, "test", None) and evaluation.task != trained:
        return (
            "the training task cuts a test part off its data, so leave out `task` in this "
            "evaluation to use it; or state `split: train` to evaluate on the training data"
        )
    return (
        f"{trained.advice_on_test_split}give a file with other questions; or state `split: train` "
        "to evaluate on the training data"
    )


def _warn_of_other_answers(run: Run) -> None:
    """Warn of evaluations whose questions have other answers than those of the training data.

    Only answers that are the same for all questions are compared; letters mean what each question
    lists, and every question may have choices of its own.
    """
    trained = _answers(run.stated_task(), run.training.train)
    for evaluation in run.recipe.evaluate:
        if not trained or evaluation.task == run.recipe.train.task:
            continue
        asked = _answers(evaluation.task, run.evaluation_samples(evaluation.name))
        if not asked or asked == trained:
            continue
        run.console.warn(
            f"evaluate '{evaluation.name}': {_other_answers(asked, trained)}; its numbers are "
            "those of a choice among its own answers; if it is meant as the training task on other "
            "data, give both the same labels"
        )


def _other_answers(asked: frozenset[str], trained: frozenset[str]) -> str:
    """Return in words how the answers of an evaluation differ from those of training."""
    new, missing = (sorted(some) for some in (asked - trained, trained - asked))
    if asked.isdisjoint(trained):
        return f"none of its answers is one of the training task, such as {shortened(new, 2)}"
    texts = [f"{shortened(new, 3)} not among the training task's answers"] if new else []
    texts += [f"{shortened(missing, 3)} missing"] if missing else []
    return f"its answers differ from the training task's: {'; '.join(texts)}"


def _answers(task: TaskRef, samples: Iterable[Sample]) -> frozenset[str]:
    """Return the candidates, without white space at their ends, that the first samples share.

    Empty if these samples differ in them, or the candidates are letters.
    """
    form = usage.choices if (usage := task.build().usage()) else None
    if form is not None and form.respond_with == "letter":
        return frozenset()
    compared = islice(samples, COMPARED_SAMPLES)
    found = {frozenset(text.strip() for text in sample.candidates) for sample in compared}
    return found.pop() if len(found) == 1 else frozenset()


COMPARED_SAMPLES = 1000
"""Samples whose candidates are compared, so that large data is not read for a warning. Where these
have the same, the others are taken to have them, too."""


def _warn_of_other_chats(run: Run) -> None:
    """Warn of evaluations in which models are asked in a different way than in training."""
    from firstcli.data.chat import ChatFormat
    from firstcli.stages import chat, role_models

    role: Role = "teacher" if run.recipe.teacher else "student"
    trained = chat.chat_format(run, role)
    if trained is None and chat.learns_conversations(run):
        trained = ChatFormat(role_models.tokenizer(run, role))
    for evaluation in run.recipe.evaluate:
        asked = chat.chat_format(run, role, evaluation.name)
        if (asked and asked.identity) != (trained and trained.identity):
            how = _CHATS[asked is not None, trained is not None]
            run.console.warn(
                f"evaluate '{evaluation.name}': models are asked {how}; to ask them as in "
                "training, give this task the same `chat` and `system` as train.task"
            )


_CHATS = {
    (True, True): "with a different system message than in training",
    (True, False): "with a chat template, without which they are trained",
    (False, True): "without the chat template with which they are trained",
}
"""How an evaluation differs, by whether it and the training are chats."""


def _warn_of_seen_rows(run: Run) -> None:
    is_unseen = getattr(run.recipe.train.task.options, "unseen", False)
    if run.recipe.teacher and run.recipe.teacher.finetune is None and not is_unseen:
        if _mentor_has_not_seen_them(run):
            return
        run.console.warn(
            "teacher: it is not fine-tuned in this run and may have seen the validation samples; a "
            "recalibrator fitted on samples that it has seen leaves it over-confident"
        )


def _mentor_has_not_seen_them(run: Run) -> bool:
    """Return whether the teacher is a student of a run that held out the same samples."""
    from firstcli.workspace.artifacts import Artifact

    source = run.recipe.teacher.from_run if run.recipe.teacher else None
    manifest = Artifact(source.student, True).written() if source else None
    held_out = manifest.inputs.get("validation samples") if manifest else None
    return held_out == run.part_content("validation")


def _warn_of_unpinned_checkpoints(run: Run) -> None:
    for section in (run.recipe.teacher, run.recipe.student):
        model = section.model if section else None
        if model is not None and model.plugin.is_remote:
            run.console.warn(
                f"{model.family}: nothing identifies the weights of a remote model; when a run "
                "goes on, some stored samples are asked for again, and it stops if they differ"
            )
        if model is None or model.checkpoint is None or model.revision is not None:
            continue
        if not Path(model.checkpoint).is_absolute():
            run.console.warn(
                f"checkpoint {model.checkpoint}: no revision is given, so a change on the hub "
                "would go unnoticed; pin one with `revision:`"
            )


def _check_weights(run: Run, role: Role) -> object:
    from firstcli.stages import weights

    return weights.check(run, role)


def _check_remote(run: Run) -> object:
    from firstcli.stages import remote
    from firstcli.workspace.memory import NOT_REMEMBERED

    remote.check(run)
    return NOT_REMEMBERED


def _encoded_example(run: Run) -> object:
    from firstcli.stages.example import encoded_example

    return encoded_example(run)


WEIGHTS: dict[Role, SharedCheck] = {
    "teacher": SharedCheck(
        "teacher's weights", partial(_check_weights, role="teacher"), heavy=True
    ),
    "student": SharedCheck(
        "student's weights", partial(_check_weights, role="student"), heavy=True
    ),
}
"""The check of the weights with which a role starts."""


def untrained_teacher(run: Run, role: Role) -> tuple[SharedCheck, ...]:
    """Return the check of a role's weights if no training unit of this run starts with them."""
    trained = role == "student" or not run.recipe.teacher or run.recipe.teacher.finetune
    if trained:
        return ()
    return (REMOTE if run.model_section(role).plugin.is_remote else WEIGHTS[role],)


REMOTE = SharedCheck("remote teacher", _check_remote, heavy=True)
"""Whether a teacher that runs elsewhere answers as it must."""
EXAMPLE = SharedCheck("encoded example", _encoded_example)
"""Not only a check: the plan shows its result."""
TOKENIZERS = SharedCheck("tokenizers", _check_tokenizers)
TOP_K = SharedCheck("top_k", _check_top_k)
OVERLAP = SharedCheck("overlap", _check_overlap)
OTHER_CHATS = SharedCheck("chats of evaluations", _warn_of_other_chats)
OTHER_ANSWERS = SharedCheck("answers of evaluations", _warn_of_other_answers)
SEEN_ROWS = SharedCheck("seen rows", _warn_of_seen_rows)
UNPINNED = SharedCheck("unpinned checkpoints", _warn_of_unpinned_checkpoints)
