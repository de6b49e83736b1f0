"""The loop: for every arm and seed, rounds of choosing, buying and training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from firstcli.active import child, choosing, purchases
from firstcli.active.data import ActiveData, StartingData
from firstcli.active.folders import ROUNDS, ArmFolder, RoundFolder, as_lines, read_json
from firstcli.active.purchases import Buyer
from firstcli.active.spending import Spent, affordable
from firstcli.active.stopping import has_stopped
from firstcli.api import JSON, Annotation, Pool, Sample
from firstcli.errors import UserError
from firstcli.pipeline.execute import bring_up_to_date
from firstcli.pipeline.plan import Request
from firstcli.recipe.active import Active
from firstcli.recipe.sections import Arm
from firstcli.runtime.files import atomic_write, write_json
from firstcli.stages import fingerprints
from firstcli.stages.distill import DISTILL
from firstcli.stages.evaluate import EVALUATE, load_records
from firstcli.tasks.annotated import to_row
from firstcli.workspace.artifacts import fingerprint
from firstcli.workspace.data_decisions import state_data
from firstcli.workspace.run import Run
from firstcli.workspace.units import KNOWLEDGE, Model, model_path, of_arms

CHUNK = 32
"""Annotations after which a budget of tokens or money is looked at again."""


@dataclass
class Progress:
    """What an arm has chosen, bought and spent so far."""

    ids: list[str] = field(default_factory=list)
    annotations: list[Annotation] = field(default_factory=list)
    spent: Spent = Spent()
    key: str = ""
    """What all this depends on."""
    student: Path | None = None
    """The run folder of the latest student."""
    student_content: str = ""
    rounds: list[dict[str, JSON]] = field(default_factory=list)
    """The facts of every round."""


@dataclass(frozen=True)
class ActiveRun:
    """A run with the section `active`, opened once for all arms and seeds."""

    run: Run
    request: Request
    data: ActiveData
    teacher: str
    """What identifies the teacher; empty if there is none."""

    @property
    def active(self) -> Active:
        active = self.run.recipe.active
        assert active
        return active

    @property
    def folder(self) -> Path:
        """The folder of all rounds."""
        return self.run.folder / ROUNDS

    @cached_property
    def held_out(self) -> Path | None:
        """The file of the held-out samples, if there are any."""
        samples = self.data.held_out
        if not samples:
            return None
        return write_samples(self.folder / "held-out.jsonl", samples)

    @cached_property
    def evaluations(self) -> dict[str, str]:
        """A digest of the samples of every evaluation."""
        names = [section.name for section in self.run.recipe.evaluate]
        return {name: self.run.evaluation_content(name) for name in names}


def write_samples(path: Path, samples: Sequence[Sample]) -> Path:
    """Write samples for the task `annotated`, unless the file has them already."""
    content = as_lines([to_row(sample) for sample in samples])
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
    return path


class ArmLoop:
    """The rounds of one arm and seed."""

    def __init__(self, whole: ActiveRun, model: Model) -> None:
        """Read nothing yet.

        Args:
            whole: the run.
            model: arm and seed of the student.
        """
        self.whole, self.model, self.active = whole, model, whole.active
        self.recipe = whole.run.recipe
        self.arm: Arm = self.recipe.arms[model.arm]
        self.seed = self.recipe.seed if model.seed is None else model.seed
        self.folder = ArmFolder(whole.folder / model.trained)
        self.selector = self.active.selector_of(self.arm)
        self.annotator = self.active.annotator_of(self.arm)
        self.progress = Progress()

    @cached_property
    def data(self) -> StartingData:
        return self.whole.data.start(self.seed)

    @cached_property
    def buyer(self) -> Buyer:
        tokenizers, teacher = self.whole.run.tokenizers, self.whole.teacher
        return Buyer(
            self.annotator, teacher, lambda: tokenizers.of("teacher"), self.folder.bought
        )

    def play(self, at_most: int | None) -> None:
        """Bring the rounds up to date.

        Args:
            at_most: new rounds after which to stop; None for all.
        """
        new = 0
        for number in range(self.active.rounds + 1):
            if self.is_over(number) or new == at_most:
                break
            new += self.round(number) and number > 0

    def is_over(self, number: int) -> bool:
        """Return whether no round follows: nothing is left to buy, or the student is done."""
        if number == 0:
            return False
        left = len(self.data.pool) - len(self.progress.ids)
        if not left:
            return True
        return has_stopped(self.active.stop, self.progress.rounds)

    def round(self, number: int) -> bool:
        """Bring a round up to date; return whether it was not."""
        folder, console = self.folder.round(number), self.whole.run.console
        self._choose_and_buy(number, folder)
        student, key = self._child(number, folder)
        facts = folder.read_facts(key)
        is_new = facts is None
        if facts is None:
            console.say(f"{self.model.trained}, round {number} of {self.active.rounds}:")
            self._take_over_knowledge(folder)
            bring_up_to_date(student, self._request(folder), EVALUATE)
            facts = {"fingerprint": key, **self._facts(number, student)}
            write_json(folder.facts, facts)
        self.progress.student = folder.run
        self.progress.student_content = str(facts["student"])
        self.progress.rounds.append(facts)
        if is_new:
            console.say(f"  {in_words(facts)}")
        return is_new

    def _request(self, folder: RoundFolder) -> Request:
        request = self.whole.request
        return replace(
            request, arms=[self.model.arm], run_dir=folder.run, only=False, stage_options={}
        )

    # Choosing and buying.

    def _choose_and_buy(self, number: int, folder: RoundFolder) -> None:
        """Extend the annotations by those of a round; the first round, 0, buys nothing."""
        progress = self.progress
        progress.key = self._choice_key(number)
        if number == 0:
            return
        known = read_json(folder.chosen)
        if known is not None and known.get("fingerprint") == progress.key:
            ids = [str(id) for id in known["ids"]]
            bought = self.buyer.buy([self.data.pool.question(id) for id in ids])
        else:
            ids, bought = self._bought_anew(number, folder)
            lines = [purchases.to_json(annotation) for annotation in bought]
            atomic_write(folder.annotations, as_lines(lines))
            write_json(folder.chosen, {"fingerprint": progress.key, "ids": ids})
        for annotation in bought:
            progress.spent = progress.spent.plus(annotation)
        progress.ids += ids
        progress.annotations += bought

    def _choice_key(self, number: int) -> str:
        """Return what the choice of a round depends on, all earlier ones included."""
        ref, progress = self.selector, self.progress
        depends_on = {
            "before": progress.key,
            "selector": " ".join((ref.name, ref.identity, ref.source)),
            "options": json.dumps(ref.effective, sort_keys=True),
            "annotator": self.buyer.key(Sample("", "", "")),
            "seed": str(self.seed),
            "pool": self.data.pool.content,
            "spent": json.dumps(asdict(progress.spent)),
            "round": f"{number} of {self.active.rounds}",
            "budget": self.active.budget.model_dump_json(),
            "prices": "" if self.active.prices is None else self.active.prices.model_dump_json(),
        }
        if ref.plugin.needs or self.annotator.plugin.reads_explanation:
            depends_on["student"] = progress.student_content
            depends_on["confidence"] = self.active.confidence_of(self.arm)
        return fingerprint(depends_on)

    def _bought_anew(self, number: int, folder: RoundFolder) -> tuple[list[str], list[Annotation]]:
        taken = set(self.progress.ids)
        ids = [id for id in self.data.pool.ids if id not in taken]
        pool = self._view(ids)
        folder.path.mkdir(parents=True, exist_ok=True)
        scores = choosing.scored(folder.scores, self.progress.key, self.selector, pool, self.seed)
        spent, bought, chosen = self.progress.spent, list[Annotation](), list[str]()
        while count := self._affordable(number, spent, bought, len(ids) - len(chosen)):
            open_places = [place for place, id in enumerate(ids) if id not in {*chosen}]
            rest = _selected(pool, open_places)
            places = choosing.chosen(
                self.selector, rest, scores[open_places], count, self.seed
            )
            picked = [rest.ids[place] for place in places]
            for annotation in self.buyer.buy([self.data.pool.question(id) for id in picked]):
                spent = spent.plus(annotation)
                bought.append(annotation)
            chosen += picked
        return chosen, bought

    def _affordable(
        self, number: int, spent: Spent, bought: Sequence[Annotation], left: int
    ) -> int:
        """Return how many annotations are bought next."""
        if not left:
            return 0
        is_counted = self.active.budget.tokens is None and self.active.budget.cost is None
        sample = bought or [self.buyer.expected(q) for q in self.data.pool.questions[:CHUNK]]
        read = sum(annotation.tokens_read for annotation in sample) / len(sample)
        written = sum(annotation.tokens_written for annotation in sample) / len(sample)
        each = Spent(1, round(read), round(written))
        count = affordable(self.active, spent, each, number, left)
        return count if is_counted else min(count, CHUNK)

    def _view(self, ids: Sequence[str]) -> Pool:
        """Return what the selector reads of the questions."""
        if needs := self.selector.plugin.needs:
            raise UserError(
                f"active.selector: '{self.selector.name}' needs {', '.join(sorted(needs))}, which "
                "this version does not compute"
            )
        return Pool(ids)

    # The student of a round.

    def _child(self, number: int, folder: RoundFolder) -> tuple[Run, str]:
        """Return the run of a round's student, and what the round depends on."""
        learned = purchases.annotated_samples(
            self.data.pool, self.annotator, self.progress.annotations
        )
        samples = write_samples(folder.samples, [*self.data.seeds, *learned])
        whole = self.whole
        start = self._start(number)
        recipe = child.child_recipe(
            whole.run, self.model.arm, self.seed, start, samples, whole.held_out
        )
        run = Run(recipe, folder.run, whole.run.console)
        state_data(run)
        digests = whole.run.digests
        files = [samples, *([whole.held_out] if whole.held_out else [])]
        key = fingerprint(
            {
                "recipe": json.dumps(recipe.resolved(), sort_keys=True),
                "samples": " ".join(digests.of_file(file) for file in files),
                "teacher": whole.teacher,
                "start": self.progress.student_content,
                "choice": self.progress.key,
                "evaluations": json.dumps(whole.evaluations, sort_keys=True),
            }
        )
        return run, key

    def _start(self, number: int) -> dict[str, Any]:
        section = self.recipe.student.model
        if self.active.train == "continue" and number and self.progress.student:
            folder = model_path(self.progress.student, Model(self.model.arm))
            return child.model_at(section, folder)
        if section.plugin.needs_checkpoint:
            return section.model_dump(mode="json", exclude_none=True)
        return child.model_at(section, starting_folder(self.whole, self.seed))

    def _take_over_knowledge(self, folder: RoundFolder) -> None:
        """Copy what the teacher said in the previous round: parts that are the same stay current.

        These are the held-out samples, and the first ones where only distributions are bought.
        """
        if self.progress.student is None or (target := folder.run / KNOWLEDGE).exists():
            return
        if (source := self.progress.student / KNOWLEDGE).is_dir():
            partial = folder.run / f".{KNOWLEDGE}.copied"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source, partial)
            partial.rename(target)

    def _facts(self, number: int, student: Run) -> dict[str, JSON]:
        """Return what a round has cost and brought."""
        from firstcli import metrics

        settings = self.recipe.metrics
        units = of_arms(EVALUATE.units(student.recipe, student.folder), [self.model.arm])
        measured: dict[str, dict[str, JSON]] = {}
        for unit in units:
            if student.recipe.is_validation(unit.evaluation):
                continue
            ((_, records),) = load_records([unit], settings.candidates).items()
            summary = asdict(metrics.summarize(records, settings.confidence, settings.bins))
            values = {key: value for key, value in summary.items() if value is not None}
            measured.setdefault(unit.evaluation, {})[unit.model.row] = values
        spent, prices = self.progress.spent, self.active.prices
        manifest = student.manifests[DISTILL.key(Model(self.model.arm))]
        facts: dict[str, JSON] = {
            "arm": self.model.arm,
            "seed": self.seed,
            "round": number,
            "seed_samples": len(self.data.seeds),
            "held_out": len(self.whole.data.held_out),
            "annotations": spent.samples,
            "tokens_read": spent.tokens_read,
            "tokens_written": spent.tokens_written,
            "evaluations": measured,
            "student": manifest.content,
        }
        if prices:
            facts["cost"] = prices.cost(spent.tokens_read, spent.tokens_written)
        return facts


def _selected(pool: Pool, places: Sequence[int]) -> Pool:
    """Return some questions of a pool."""

    def of(values: Sequence[Any] | None) -> list[Any] | None:
        return None if values is None else [values[place] for place in places]

    return Pool(
        [pool.ids[place] for place in places],
        of(pool.answers),
        of(pool.thoughts),
        of(pool.samples),
        None if pool.losses is None else pool.losses[list(places)],
        None if pool.embeddings is None else pool.embeddings[list(places)],
    )


def in_words(facts: dict[str, JSON]) -> str:
    """Describe a finished round in one line."""
    from firstcli.runtime.console import percent

    parts = [f"{facts['annotations']} annotations"]
    if tokens := facts["tokens_read"] + facts["tokens_written"]:
        parts.append(f"{tokens:,} tokens")
    if "cost" in facts:
        parts.append(f"cost {facts['cost']:.4g}")
    for name, rows in facts["evaluations"].items():
        for row, values in rows.items():
            shown = [
                f"{title} {percent(values[key])}"
                for key, title in (("accuracy", "accuracy"), ("ece", "ECE"), ("trust", "Trust"))
                if key in values
            ]
            parts.append(f"{name} / {row}: {', '.join(shown)}")
    return " · ".join(parts)


def starting_folder(whole: ActiveRun, seed: int) -> Path:
    """Return a folder with the weights with which every round's student starts.

    A family without a checkpoint makes weights and tokenizer from the seed and the text of the
    training task. Every round starts with the same, so they are saved once.
    """
    run = whole.run
    folder = whole.folder / "start" / str(seed)
    mark = folder / "start.json"
    depends_on = fingerprints.loading_content(run, "student") | {"seed": str(seed)}
    if read_json(mark) == {"fingerprint": fingerprint(depends_on)}:
        return folder
    run.announce_libraries()
    from firstcli.stages import role_models

    folder.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    model = role_models.starting_model(run, "student", "float32", seed)
    model.save_pretrained(folder)
    role_models.tokenizer(run, "student").save_pretrained(folder)
    write_json(mark, {"fingerprint": fingerprint(depends_on)})
    return folder
