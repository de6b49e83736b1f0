"""The loop: for every arm and seed, rounds of choosing, buying and training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from firstcli.active import child, choosing, reasons
from firstcli.active.active_run import ActiveRun, sample_lines, save_starting_model
from firstcli.active.data import StartingData
from firstcli.active.folders import ANSWERS, ArmFolder, RoundFolder, read_json, write_changed
from firstcli.active.progress import Progress, Purchase
from firstcli.active.purchases import Buyer, spent_on
from firstcli.active.reading import Said, StudentReader, read_said, write_said
from firstcli.active.rounds import in_words, measured
from firstcli.active.spending import affordable
from firstcli.active.stopping import has_stopped
from firstcli.api import JSON, FloatArray, Pool, Sample
from firstcli.data.annotations import annotation_lines, question_of
from firstcli.data.sequences import Selected
from firstcli.pipeline.execute import bring_up_to_date
from firstcli.pipeline.plan import Request
from firstcli.plugins.selectors import CheckedSelector
from firstcli.recipe.references import PluginRef
from firstcli.recipe.schema import Recipe
from firstcli.recipe.sections import Arm
from firstcli.runtime.files import write_json
from firstcli.stages.distill import DISTILL
from firstcli.stages.evaluate import EVALUATE
from firstcli.stages.posthoc import POSTHOC
from firstcli.workspace.artifacts import fingerprint
from firstcli.workspace.data_decisions import state_data
from firstcli.workspace.run import Run
from firstcli.workspace.units import KNOWLEDGE, Model, model_path

CHUNK = 32
"""Annotations after which a budget of tokens or money is looked at again."""
FIRST_CHUNK = 4
"""The same for the very first ones, before which the cost is only guessed."""


class ArmLoop:
    """The rounds of one arm and seed."""

    def __init__(self, whole: ActiveRun, model: Model) -> None:
        """Read nothing yet.

        Args:
            whole: the run.
            model: arm and seed of the student.
        """
        self.whole, self.model = whole, model
        self.recipe = whole.run.recipe
        self.arm: Arm = self.recipe.arms[model.arm]
        self.active = whole.active.of_arm(self.arm)
        self.seed = self.recipe.seed if model.seed is None else model.seed
        self.folder = ArmFolder(whole.folder / model.trained)
        self.selector = self.active.selector_of(self.arm)
        self.annotator = self.active.annotator_of(self.arm)
        self.progress = Progress()
        self.outdated_from: int | None = None
        """The first round that `take_over` found and did not take, because it is not up to date."""
        self._says_anew = False

    @cached_property
    def data(self) -> StartingData:
        return self.whole.data.start(self.seed)

    @cached_property
    def buyer(self) -> Buyer:
        data, whole = self.data, self.whole
        return Buyer(whole.run, self.active, self.annotator, data.pool, whole.data, self.seed)

    def take_over(self) -> None:
        """Take the rounds that are up to date as they are; nothing is written or trained.

        Labels that have been corrected since are not seen: annotations count as they were bought.
        """
        for number in range(self.active.rounds + 1):
            if self.is_over(number):
                break
            if not self._is_taken_over(number):
                self.outdated_from = number if self.folder.round(number).facts.exists() else None
                break

    def _is_taken_over(self, number: int) -> bool:
        folder, progress = self.folder.round(number), self.progress
        progress.key = self._choice_key(number)
        if number:
            known = self._chosen_before(folder)
            if not known.get("done") or not folder.annotations.is_file():
                return False
            progress.add(Purchase.finished(known, folder.annotations))
            if not progress.latest.ids:
                return True
        if not folder.facts.exists() or not self.whole.has_start(self.seed):
            return False
        recipe = self._round_recipe(number, folder)
        facts = folder.read_facts(self._round_key(recipe, self._samples()))
        if facts is not None:
            progress.finish(Run(recipe, folder.run, self.whole.run.console), facts)
        return facts is not None

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
        if number and not self.progress.latest.ids:
            console.say(
                f"{self.model.trained}, round {number} of {self.active.rounds}: nothing is bought, "
                "because its share of the budget does not suffice for one more annotation"
            )
            folder.facts.unlink(missing_ok=True)
            return False
        student, key = self._child(number, folder)
        facts = folder.read_facts(key)
        is_new = facts is None
        if facts is None:
            if folder.facts.exists() and not self._says_anew:
                self._says_anew = True  # all later rounds follow from this one
                console.say(
                    f"{self.model.trained}: round {number} was made with other settings or data, "
                    "or by an earlier version; it and the rounds after it are made anew"
                )
            console.say(f"{self.model.trained}, round {number} of {self.active.rounds}:")
            self._take_over_knowledge(folder)
            bring_up_to_date(student, self._request(folder), EVALUATE)
            facts = {"fingerprint": key, **self._facts(number, student)}
            write_json(folder.facts, facts)
        self.progress.finish(student, facts)
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
        progress.key, progress.latest = self._choice_key(number), Purchase()
        if number == 0:
            return
        known = self._chosen_before(folder)
        if not known:
            folder.said.unlink(missing_ok=True)  # of another student
        is_done = known.get("done") and folder.annotations.is_file()
        if is_done and not self.buyer.knows_labels:
            bought = Purchase.finished(known, folder.annotations)
        else:  # labels may have been corrected since
            bought = self._bought_again(known.get("parts", []), folder)
            if not is_done:
                self._buy_the_rest(number, bought, folder)
            write_changed(folder.annotations, annotation_lines(bought.annotations).encode())
            self._write_chosen(bought, folder, done=True)
        progress.add(bought)

    def _chosen_before(self, folder: RoundFolder) -> dict[str, JSON]:
        """Return what a round has chosen, if that depends on the same; else nothing."""
        known = read_json(folder.chosen) or {}
        return known if known.get("fingerprint") == self.progress.key else {}

    def _choice_key(self, number: int) -> str:
        """Return what the choice of a round depends on, all earlier ones included."""
        progress, prices, form = self.progress, self.active.prices, self.buyer.form
        limits = self.active.budget.model_dump(exclude_none=True)
        allowed = {name: limit * number / self.active.rounds for name, limit in limits.items()}
        depends_on = {
            "before": progress.key,
            "selector": _identity(self.selector),
            "annotator": _identity(self.annotator),
            "teacher": self.whole.teacher,
            "labels": str(self.buyer.knows_labels),
            "seed": str(self.seed),
            "form": json.dumps(form and asdict(form)),
            "pool": self.data.pool.content,
            "spent": json.dumps(asdict(progress.spent)),
            "allowed": json.dumps(allowed),  # not the whole budget, which may grow later
            "prices": prices.model_dump_json() if prices else "",
        }
        if self.selector.plugin.needs or self.annotator.plugin.reads_explanation:
            depends_on["student"] = progress.student_content
            depends_on["confidence"] = self.active.confidence_of(self.arm)
            depends_on["recalibrator"] = progress.calibration
            depends_on["max_new_tokens"] = str(self.active.max_new_tokens)
        if self.annotator.plugin.writes_questions:
            depends_on["known questions"] = self.whole.known_questions
        return fingerprint(depends_on)

    def _bought_again(self, parts: list[list[str]], folder: RoundFolder) -> Purchase:
        """Buy what a killed command had chosen, in the same parts; what was said costs nothing."""
        bought = Purchase([id for ids in parts for id in ids], parts=parts)
        for ids in parts:
            self._buy(ids, bought, folder)
        return bought

    def _buy_the_rest(self, number: int, bought: Purchase, folder: RoundFolder) -> None:
        """Choose and buy, in parts if the cost is known only afterwards."""
        taken, selector = set(self.progress.ids), self.selector.build()
        open_places = [i for i, id in enumerate(self.data.pool.ids) if id not in taken]
        questions = Selected(self.data.pool.questions, np.array(open_places, np.intp))
        folder.path.mkdir(parents=True, exist_ok=True)
        pool, scores = choosing.scored(
            folder.scores, self.progress.key, questions, selector, self._scored
        )
        order = choosing.ChoiceOrder(selector, pool, scores, self.seed)
        while count := self._affordable(number, bought, len(questions) - len(bought.ids)):
            chosen = order.after(bought.ids, count)
            bought.ids += chosen
            bought.parts.append(chosen)
            self._write_chosen(bought, folder)  # a killed command goes on with it
            self._buy(chosen, bought, folder)

    def _write_chosen(self, bought: Purchase, folder: RoundFolder, *, done: bool = False) -> None:
        values = {"fingerprint": self.progress.key, "done": done, **bought.facts}
        write_changed(folder.chosen, json.dumps(values, indent=1).encode())

    def _scored(
        self, selector: CheckedSelector, questions: Sequence[Sample]
    ) -> Iterator[tuple[Pool, FloatArray]]:
        """Yield the parts of the pool with their scores, (N,)."""
        if not selector.needs:
            pool = Pool([str(question.id) for question in questions])
            yield pool, selector.scores(pool, self.seed)
            return
        known = [self.data.pool.question(id) for id in self.progress.ids]
        first = [question_of(sample, self.buyer.form) for sample in self.data.seeds]
        yield from self._reader().scored(selector, questions, [*first, *known])

    def _reader(self) -> StudentReader:
        """Return what asks the latest student."""
        assert self.progress.student is not None
        return StudentReader(
            *(self.progress.student, self.model.arm, self.buyer.form),
            recalibrated=self.active.recalibrates(self.arm),
            seed=self.seed,
            max_new_tokens=self.active.max_new_tokens,
        )

    def _buy(self, ids: Sequence[str], bought: Purchase, folder: RoundFolder) -> None:
        """Buy annotations, and add them to what a round has bought."""
        reads = self.annotator.plugin.reads_explanation
        said: Mapping[str, Said] = {}
        if reads or "thoughts" in self.selector.plugin.needs:  # else for the page alone
            said = self._said(ids, folder.said)
        outcome = self.buyer.buy(
            *(ids, said if reads else {}, bought.failures),
            [*self.progress.annotations, *bought.annotations],
        )
        bought.annotations += outcome.annotations
        bought.spent += spent_on(outcome)
        bought.failures += len(outcome.failures)
        bought.contradictions += outcome.contradictions
        bought.retried += outcome.retried

    def _affordable(self, number: int, bought: Purchase, left: int) -> int:
        """Return how many annotations are bought next."""
        spent = self.progress.spent + bought.spent
        each = spent if spent.samples else self.buyer.expected
        count = affordable(self.active, spent, each, number, left)
        budget = self.active.budget
        if budget.tokens is None and budget.cost is None:
            return count
        return min(count, CHUNK if spent.samples else FIRST_CHUNK)

    def _said(self, ids: Sequence[str], path: Path) -> Mapping[str, Said]:
        """Return what the latest student says of some questions, and keep it in a file."""
        known = read_said(path)
        missing = [self.data.pool.question(id) for id in ids if id not in known]
        if missing:
            known |= {each.id: each for each in self._reader().said(missing)}
            write_said(path, list(known.values()))
        return known

    # The student of a round.

    def _child(self, number: int, folder: RoundFolder) -> tuple[Run, str]:
        """Return the run of a round's student, and what the round depends on."""
        whole = self.whole
        samples = self._samples()
        write_changed(folder.samples, samples)
        whole.write_held_out()
        if not self.recipe.student.model.plugin.needs_checkpoint:
            save_starting_model(whole, self.seed)
        recipe = self._round_recipe(number, folder)
        run = Run(recipe, folder.run, whole.run.console)
        name = fingerprint({"teacher": whole.teacher})[:16]
        run.shared_answers = whole.folder / ANSWERS / f"{name}.jsonl"
        state_data(run)
        return run, self._round_key(recipe, samples)

    def _samples(self) -> bytes:
        """Return the file of what the student learns: the first samples and all annotated ones."""
        learned = self.buyer.learned(self.progress.annotations, self.arm)
        return sample_lines([*self.data.seeds, *learned])

    def _round_recipe(self, number: int, folder: RoundFolder) -> Recipe:
        return child.child_recipe(
            *(self.whole.run, self.model.arm, self.seed, self._start(number)),
            *(folder.samples, self.whole.held_out),
        )

    def _round_key(self, recipe: Recipe, samples: bytes) -> str:
        """Return what a round depends on; where the run folder lies is no part of it."""
        whole = self.whole
        return fingerprint(
            {
                "recipe": json.dumps(whole.without_place(recipe.resolved()), sort_keys=True),
                "samples": sha256(samples).hexdigest(),
                "held out": sha256(whole.held_out_lines).hexdigest(),
                "teacher": whole.teacher,
                "student": whole.student(self.seed),
                "start": self.progress.student_content,
                "choice": self.progress.key,
                "evaluations": json.dumps(whole.evaluations, sort_keys=True),
            }
        )

    def _start(self, number: int) -> dict[str, Any]:
        section = self.recipe.student.model
        if self.active.train == "continue" and number and self.progress.student:
            folder = model_path(self.progress.student.folder, Model(self.model.arm))
            return child.model_at(section, folder)
        if section.plugin.needs_checkpoint:
            return section.model_dump(mode="json", exclude_none=True)
        return child.model_at(section, self.whole.starting_folder(self.seed))

    def _take_over_knowledge(self, folder: RoundFolder) -> None:
        """Copy what the teacher said in the previous round: parts that are the same stay current.

        These are the held-out samples, and the first ones where only distributions are bought.
        """
        if self.progress.student is None or (target := folder.run / KNOWLEDGE).exists():
            return
        if (source := self.progress.student.folder / KNOWLEDGE).is_dir():
            partial = folder.run / f".{KNOWLEDGE}.copied"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source, partial)
            partial.rename(target)

    def _facts(self, number: int, student: Run) -> dict[str, JSON]:
        """Return what a round has cost and brought."""
        spent, latest, prices = self.progress.spent, self.progress.latest, self.active.prices
        facts: dict[str, JSON] = {
            "arm": self.model.arm,
            "seed": self.seed,
            "round": number,
            "seed_samples": len(self.data.seeds),
            "held_out": len(self.whole.data.held_out),
            "pool": len(self.data.pool),
            "asked": len(self.progress.ids),
            "annotations": spent.samples,
            "tokens_read": spent.tokens_read,
            "tokens_written": spent.tokens_written,
            "failures": latest.failures,
            "contradictions": latest.contradictions if self.buyer.knows_labels else None,
            "retried": latest.retried,
            **self._of_explanations(number),
            "evaluations": measured(student, self.model.arm),
            "student": student.manifests[DISTILL.key(Model(self.model.arm))].content,
        }
        if prices:
            facts["cost"] = prices.cost(spent.tokens_read, spent.tokens_written)
        if self.active.recalibrates(self.arm):
            facts["calibration"] = student.manifests[
                POSTHOC.key(Model(self.model.arm, posthoc=True))
            ].content
        return facts

    def _of_explanations(self, number: int) -> dict[str, JSON]:
        """Return how good the student's explanations are; None is what cannot be known."""
        said, latest = read_said(self.folder.round(number).said), self.progress.latest
        reads = self.annotator.plugin.reads_explanation
        chosen = (self.data.pool.question(id) for id in latest.ids)
        return {
            "flawed": reasons.corrected(latest.annotations, said) if reads else None,
            "right_for_wrong_reasons": reasons.right_for_wrong_reasons(
                self.buyer.task, chosen, said
            ),
        }


def _identity(ref: PluginRef) -> str:
    """Return what a plugin's results depend on."""
    options = json.dumps(ref.effective, sort_keys=True)
    return " ".join((ref.name, ref.identity, ref.source, options))
