"""The data of active distillation: the samples known from the start, and the guarded pool."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from firstcli.api import ExplanationForm, Sample
from firstcli.data import splits
from firstcli.data.annotations import question_of
from firstcli.data.samples import Samples
from firstcli.data.sequences import Selected
from firstcli.errors import UserError, shortened
from firstcli.recipe.active import Active
from firstcli.recipe.active_conflicts import uses_training_split
from firstcli.stages.annotating import folded
from firstcli.workspace.run import Run
from firstcli.workspace.tokenizers import MOST_TEXTS

POOL_KEY = "active.pool"
"""The recipe's key of the pool, for messages."""
Indices = npt.NDArray[np.intp]


class UnboughtLabelError(RuntimeError):
    """A bug of firstcli: a label of the pool was about to be read before it was bought."""


class QuestionPool:
    """The questions of a pool; a label is handed out only after it was bought."""

    def __init__(self, questions: Sequence[Sample], labelled: Sequence[Sample]) -> None:
        """Guard the labels.

        Args:
            questions: the questions with their ids and without labels, (N,).
            labelled: the same questions with their labels, (N,).
        """
        self.questions = questions
        self._labelled = labelled
        self._bought: set[str] = set()

    def __len__(self) -> int:
        return len(self.questions)

    @cached_property
    def ids(self) -> list[str]:
        """The ids of all questions."""
        return [str(question.id) for question in self.questions]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {id: place for place, id in enumerate(self.ids)}

    @cached_property
    def content(self) -> str:
        """A digest of all questions."""
        return splits.content_digest(self.questions)

    def question(self, id: str) -> Sample:
        """Return a question without its label."""
        return self.questions[self._places[id]]

    def buy(self, ids: Iterable[str]) -> None:
        """Note that the labels of some questions are paid for."""
        self._bought.update(ids)

    def label(self, id: str) -> Sample:
        """Return a question with its label.

        Raises:
            UnboughtLabelError: it was not bought.
        """
        if id not in self._bought:
            raise UnboughtLabelError(f"the label of question '{id}' was not bought")
        return replace(self._labelled[self._places[id]], id=id)


@dataclass(frozen=True, slots=True)
class StartingData:
    """What a student knows before the first round, and what can be asked."""

    seeds: Sequence[Sample]
    """The labelled samples with which it starts."""
    pool: QuestionPool


class ActiveData:
    """The data of a recipe's section `active`, read once for all arms and seeds."""

    def __init__(self, run: Run, active: Active) -> None:
        """Read the pool and the labelled samples.

        Raises:
            UserError: there is no question, or a question is also in an evaluation.
        """
        self._run, self._active = run, active
        recipe = run.recipe
        self._starts: dict[int, tuple[Sequence[Sample], Indices]] = {}
        self._is_own = uses_training_split(active, recipe.train)
        ref = run.adapted_task(active.pool.task or recipe.train.task, f"{POOL_KEY}.task")
        limit = recipe.train.limit if self._is_own else None
        self._labelled = run.split_samples(ref, active.pool.split, POOL_KEY, limit)
        if self._labelled[0].messages:
            raise UserError(f"{POOL_KEY}: its samples are conversations, which ask no question")
        self._refuse_labels_in_tokenizers()
        self.task = ref
        """The task of the questions, with adapted options."""
        form = ref.build().explanations()
        if form != run.training_task.build().explanations():
            raise UserError(
                f"{POOL_KEY}.task: task '{ref.name}' makes responses of steps and answer in "
                f"another form than '{recipe.train.task.name}' of train.task; give both the same "
                "options"
            )
        stripped = Samples((_question(each, form) for each in self._labelled), run.folder)
        self._questions = Samples(splits.with_ids(stripped, POOL_KEY), run.folder)
        self._prompts = splits.prompt_digests(self._questions)
        self.held_out: Sequence[Sample] = self._held_out()
        self._refuse_overlap()

    @cached_property
    def known_questions(self) -> frozenset[str]:
        """All questions of the pool's split, the labelled data and the evaluations, `folded`."""
        recipe = self._run.recipe
        rest = () if self._is_own else (self._run.training.train,)
        tested = (self._run.evaluation_samples(section.name) for section in recipe.evaluate)
        parts = (self._questions, self.held_out, *rest, *tested)
        return frozenset(folded(sample.prompt) for part in parts for sample in part)

    def _held_out(self) -> Sequence[Sample]:
        """Return the labelled samples on which recalibrators are fitted."""
        if not self._is_own:
            return self._run.training.validation
        return [self._known(place) for place in self._own_parts[1].tolist()]

    @cached_property
    def _own_parts(self) -> tuple[Indices, Indices]:
        """The places of the training split's labelled samples: (may be seeds, held out)."""
        with_label = np.flatnonzero(~self._labelled.unanswered)
        train, held_out = splits.cut_validation(
            Selected(self._questions, with_label), self._run.recipe.train.validation
        )
        assert isinstance(train, Selected) and isinstance(held_out, Selected)
        return with_label[train.indices], with_label[held_out.indices]

    def _known(self, place: int) -> Sample:
        """Return a sample whose label is known from the start."""
        return replace(self._labelled[place], id=self._questions[place].id)

    def _refuse_labels_in_tokenizers(self) -> None:
        """Refuse a pool whose labels decide on what text a tokenizer is trained."""
        recipe = self._run.recipe
        for role, section in (("teacher", recipe.teacher), ("student", recipe.student)):
            if not self._is_own or section is None or not section.model.plugin.needs_text:
                continue
            if any(len(sample.candidates) > MOST_TEXTS for sample in self._labelled):
                raise UserError(
                    f"{POOL_KEY}: its questions have more than {MOST_TEXTS} candidates, of which "
                    f"the tokenizer of {role}.model (family '{section.model.family}') reads the "
                    "right one before it is bought; name another split or task, or give a model "
                    "with a tokenizer"
                )

    def _refuse_overlap(self) -> None:
        for section in self._run.recipe.evaluate:
            tested = splits.prompt_digests(self._run.evaluation_samples(section.name))
            if (shared := np.flatnonzero(np.isin(self._prompts, tested))).size:
                ids = [str(self._questions[place].id) for place in shared[:3].tolist()]
                raise UserError(
                    f"{POOL_KEY}: {len(shared)} of its {len(self._prompts)} questions, such as "
                    f"{shortened(ids, 3, len(shared))}, are also in evaluate '{section.name}'; "
                    "remove them from one of the two"
                )

    def start(self, seed: int) -> StartingData:
        """Return the data with which every arm starts that is trained with a seed.

        Every call returns a pool of its own, whose labels have not been bought.

        Raises:
            UserError: there are too few labelled samples, or no question is left.
        """
        if seed not in self._starts:
            self._starts[seed] = self._started(seed)
        seeds, chosen = self._starts[seed]
        pool = QuestionPool(Selected(self._questions, chosen), Selected(self._labelled, chosen))
        return StartingData(seeds, pool)

    def _started(self, seed: int) -> tuple[Sequence[Sample], Indices]:
        """Return the first samples, and the places of the pool's questions."""
        places, seeds = self._seeds(seed)
        known = splits.prompt_digests([*seeds, *self.held_out])
        if not self._is_own:
            known = np.union1d(known, splits.prompt_digests(self._run.training.train))
            if labelled := int(np.isin(self._prompts, known).sum()):
                self._run.console.say(
                    f"{POOL_KEY}: {labelled:,} of its {len(self._prompts):,} questions are also in "
                    "train.task and are left out"
                )
        is_first = np.zeros(len(self._prompts), np.bool_)
        is_first[np.unique(self._prompts, return_index=True)[1]] = True
        kept = is_first & ~np.isin(self._prompts, known)
        kept[places] = False
        if repeated := int((~is_first).sum()):
            self._run.console.warn(
                f"{POOL_KEY}: {repeated} questions repeat an earlier one and are left out"
            )
        chosen = np.flatnonzero(kept)[: self._active.pool.limit]
        if not chosen.size:
            raise UserError(
                f"{POOL_KEY}: no question is left: all {len(kept)} are known from the start; give "
                "more questions, or lower active.seed_samples"
            )
        self._require_budget(len(chosen))
        return seeds, chosen

    def _seeds(self, seed: int) -> tuple[Indices, list[Sample]]:
        """Return the places in the pool's split of the first samples, and the samples."""
        count = self._active.seed_samples
        if self._is_own:
            places = self._own_parts[0]
            drawn = _drawn([str(self._questions[i].id) for i in places.tolist()], count, seed)
            chosen = places[drawn]
            self._require_seeds(len(places))
            return chosen, [self._known(place) for place in chosen.tolist()]
        train = self._run.training.train
        self._require_seeds(len(train))
        drawn = _drawn([str(sample.id) for sample in train], count, seed)
        return np.zeros(0, np.intp), [train[place] for place in drawn.tolist()]

    def _require_seeds(self, available: int) -> None:
        if (count := self._active.seed_samples) > available:
            raise UserError(
                f"active.seed_samples: found {count}, but the training part has {available} "
                "labelled samples; lower it"
            )

    def _require_budget(self, available: int) -> None:
        budgets = {"active": self._active.budget}
        budgets |= {
            f"arms.{name}": arm.budget
            for name, arm in self._run.recipe.arms.items()
            if arm.budget is not None
        }
        for key, budget in budgets.items():
            if budget.samples is not None and budget.samples > available:
                raise UserError(
                    f"{key}.budget.samples: found {budget.samples}, but the pool has {available} "
                    "questions; lower it, or give more questions"
                )


def _question(sample: Sample, form: ExplanationForm | None) -> Sample:
    """Return a sample without all that its label says, an id made of the label included.

    Args:
        sample: a sample, with or without a label.
        form: how responses are made of steps and answer; None if the samples have no steps.
    """
    id = None if splits.has_own_id(sample) else sample.id
    return replace(question_of(sample, form), id=id)


def _drawn(ids: Sequence[str], count: int, seed: int) -> Indices:
    """Return the places of random ids, ascending; neither depends on the order of the ids."""

    def rank(place: int) -> bytes:
        text = f"seed samples {seed} {ids[place]}"
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()

    return np.array(sorted(sorted(range(len(ids)), key=rank)[:count]), np.intp)
