"""The teacher's stored knowledge: what its files state, and what an arm learns of it."""

from __future__ import annotations

from itertools import chain

from firstcli.data.encoded import EncodedStore
from firstcli.knowledge.candidates import CandidateKnowledge
from firstcli.knowledge.mean import MeanKnowledge
from firstcli.knowledge.shards import StoreFormat
from firstcli.knowledge.store import JoinedKnowledge, Knowledge, KnowledgePart, KnowledgeSource
from firstcli.recipe.sections import Arm
from firstcli.stages import inputs, shared_tokens
from firstcli.workspace.run import Run, once_per_run
from firstcli.workspace.units import Part, knowledge_path, learned_parts, teachers_of


@once_per_run
def knowledge_width(run: Run) -> int:
    """Return the number of probabilities that are stored per position.

    Over candidates, it is at most the largest number of candidates of a training sample. With
    draws, it is at most the vocabulary.
    """
    section, training = run.recipe.knowledge, run.training
    if section.draws is not None:
        return min(section.draws, shared_tokens.shared_vocabulary(run))
    if not section.over_candidates:
        return section.top_k
    samples = chain(training.train, training.validation, training.unlabelled)
    return min(section.top_k, max(len(sample.candidates) for sample in samples))


def store_format(run: Run, part: Part) -> StoreFormat:
    """Return what every shard of a part's knowledge states."""
    settings = run.recipe.knowledge.stored() | {"top_k": knowledge_width(run)}
    return StoreFormat(
        **settings, split=part, tokenizer=shared_tokens.vocabulary_digest(run, "teacher")
    )


@once_per_run
def stored_knowledge(run: Run, part: Part, seed: int | None = None) -> Knowledge:
    """Open a part's knowledge and check that it belongs to the samples, as the teacher reads them.

    Args:
        run: the run.
        part: the part.
        seed: the seed of a further teacher; None for the first one.

    Raises:
        UserError: it is damaged, or belongs to a different tokenizer, text, prompt, k or precision.
    """
    knowledge = Knowledge(knowledge_path(run.folder, part, seed), store_format(run, part))
    knowledge.check(inputs.knowledge_rows(run, part))
    return knowledge


Teachers = tuple[int | None, ...]
"""Teachers whose knowledge is averaged, by seed; None is the first."""


def _part_knowledge(run: Run, part: Part, teachers: Teachers) -> KnowledgePart:
    """Return a part's knowledge from teachers."""
    each = [stored_knowledge(run, part, seed) for seed in teachers]
    return each[0] if len(each) == 1 else MeanKnowledge(each)


def knowledge_of(run: Run, arm: Arm, teachers: Teachers | None = None) -> KnowledgeSource:
    """Return the knowledge that an arm learns, of all parts of its samples.

    Over candidates, it is in the student's tokens.

    Args:
        run: the run.
        arm: the arm.
        teachers: whose knowledge is averaged; by default that of all the arm's teachers.
    """
    parts, teachers = learned_parts(run.recipe, arm), teachers or teachers_of(run.recipe, arm)
    each = [_part_knowledge(run, part, teachers) for part in parts]
    knowledge: KnowledgeSource = each[0] if len(each) == 1 else JoinedKnowledge(each)
    if not run.recipe.knowledge.over_candidates:
        return knowledge
    tokens: dict[str, tuple[int, ...]] = {}
    for part in parts:
        tokens |= inputs.candidate_tokens(run, "student", part)
    return CandidateKnowledge(knowledge, tokens)


def validation_knowledge(
    run: Run, arm: Arm, teachers: Teachers | None = None
) -> tuple[EncodedStore, KnowledgeSource]:
    """Return the validation samples and knowledge of them, in the teacher's tokens.

    Args: as for `knowledge_of`.
    """
    rows = inputs.knowledge_rows(run, "validation")
    knowledge = _part_knowledge(run, "validation", teachers or teachers_of(run.recipe, arm))
    if not run.recipe.knowledge.over_candidates:
        return rows, knowledge
    return rows, CandidateKnowledge(
        knowledge, inputs.candidate_tokens(run, "teacher", "validation")
    )
