"""The recipe's schema: defaults, refusals, and dependencies between sections."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import Field, ValidationError, model_validator

from firstcli import plugins
from firstcli.api import DataPath, PluginOptions, Recalibrator, SourcedStr, Task
from firstcli.errors import UserError
from firstcli.recipe.schema import Recipe
from firstcli.recipe.sections import Arm, Training, training_of

FloatArray = npt.NDArray[np.float64]


class FakeOptions(PluginOptions):
    path: DataPath | None = None
    size: float = Field(default=1.0, gt=0)
    tokens: int = 1


class Fake(Recalibrator[FakeOptions]):
    """A plugin of any kind."""

    Options = FakeOptions
    has_candidates = True
    needs_checkpoint = True
    is_remote = False
    needs_fit = False
    answers_only = False
    explanations = Task.explanations

    def transform(self, topk: FloatArray) -> FloatArray:
        if topk.shape[1] < self.options.tokens:
            raise UserError("too few tokens")
        return topk


class Instructions(Fake):
    has_candidates = False


class Scratch(Fake):
    needs_checkpoint = False


class Fitted(Fake):
    needs_fit = True


class Remote(Scratch):
    is_remote = True


FAKES: dict[str, dict[str, type[Fake]]] = {
    "tasks": {"questions": Fake, "instructions": Instructions},
    "families": {"hub": Fake, "scratch": Scratch, "remote": Remote},
    "recalibrators": {"none": Fake, "temperature-scaling": Fitted},
}


@pytest.fixture(autouse=True)
def fake_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    real = plugins.load, plugins.find

    def load(kind: plugins.Kind, name: str) -> type[Any]:
        if kind not in FAKES:
            found: type[Any] = real[0](kind, name)
            return found
        if name not in FAKES[kind]:
            raise UserError(f"unknown {name}")
        return FAKES[kind][name]

    def find(kind: plugins.Kind, name: str) -> plugins.Plugin:
        if kind not in FAKES:
            return real[1](kind, name)
        return plugins.Plugin(kind, name, "fakes:Fake", "firstcli", "1")

    monkeypatch.setattr(plugins, "load", load)
    monkeypatch.setattr(plugins, "find", find)


def raw(**changes: Any) -> dict[str, Any]:
    recipe = {
        "name": "run",
        "train": {"task": {"name": "questions"}},
        "evaluate": [{"task": {"name": "questions"}}],
        "teacher": {"model": {"family": "scratch"}},
        "student": {"model": {"family": "scratch"}},
    }
    return {**recipe, **changes}


def mistakes(recipe: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(recipe)
    return {".".join(map(str, each["loc"])): each["msg"] for each in caught.value.errors()}


def test_defaults_are_the_papers() -> None:
    recipe = Recipe.model_validate(raw())
    assert recipe.student.training == Training(epochs=3, learning_rate=2e-5, batch_size=32)
    assert recipe.knowledge.top_k == 5
    assert recipe.metrics.bins == 10
    assert recipe.train.validation == 0.1
    assert recipe.evaluate[0].name == "questions"
    assert recipe.evaluate[0].split == "test"
    (name, arm), *others = recipe.arms.items()
    assert (name, others) == ("first", [])
    assert arm.recalibrator is not None and arm.recalibrator.name == "temperature-scaling"


def test_knowledge_arms_get_defaults_and_labels_arms_do_not() -> None:
    arm = Arm()
    assert arm.recalibrator is not None and arm.recalibrator.name == "none"
    assert arm.objective and arm.objective.name == "topk-tail"
    assert (arm.mass, arm.recalibrate) == ("teacher", None)
    assert Arm.model_validate({"objective": "topk-renormalized"}).mass == "one"
    labels = Arm(learn="labels")
    assert (labels.recalibrator, labels.objective, labels.mass) == (None, None, None)


def test_draws_need_the_teacher_s_whole_distribution() -> None:
    """Which a server does not return; labels alone need no knowledge."""
    arms = {"a": {"learn": "labels"}, "b": {"recalibrator": {"name": "none"}}}
    given = {"knowledge": {"draws": 20}, "arms": arms}
    assert Recipe.model_validate(raw(**given)).knowledge.width == 20
    found = mistakes(raw(**given, teacher={"model": {"family": "remote"}}))
    assert list(found) == ["knowledge.draws"]
    assert "teacher.model.family 'remote' runs elsewhere" in found["knowledge.draws"]
    assert "knowledge.top_k" in found["knowledge.draws"]


def test_draws_have_no_precision() -> None:
    given = {"knowledge": {"draws": 20, "precision": "compact"}}
    found = mistakes(raw(**given, arms={"b": {"recalibrator": {"name": "none"}}}))
    assert "has no effect with knowledge.draws" in found["knowledge.precision"]


def test_a_dumped_recipe_loads_again() -> None:
    arms = {"a": {"objective": "topk-renormalized"}, "b": {"learn": "labels"}, "c": {"mass": "one"}}
    recipe = Recipe.model_validate(raw(arms=arms))
    dumped = recipe.model_dump(mode="json", exclude_none=True)
    assert "mass" not in dumped["arms"]["a"]
    assert Recipe.model_validate(dumped) == recipe


@pytest.mark.parametrize("key", ["recalibrator", "objective", "mass", "recalibrate"])
def test_labels_arms_take_no_knowledge_settings(key: str) -> None:
    value = {"recalibrator": {"name": "none"}, "objective": "topk-tail", "mass": "one"}
    arm = {"learn": "labels", key: value.get(key, "all")}
    assert "has no effect with 'learn: labels'" in mistakes(raw(arms={"a": arm}))[f"arms.a.{key}"]


@pytest.mark.parametrize("mass", ["teacher", "one"])
def test_renormalized_refuses_mass(mass: str) -> None:
    arm = {"objective": "topk-renormalized", "mass": mass}
    assert "has no effect" in mistakes(raw(arms={"a": arm}))["arms.a.mass"]


@pytest.mark.parametrize("name", ["../../x", "", ".hidden", "a b", "a/b", "ä", "x" * 101, "a\n"])
def test_names_must_be_safe_as_folders(name: str) -> None:
    evaluate = [{"task": {"name": "questions"}, "name": name}]
    errors = mistakes(raw(name=name, evaluate=evaluate, arms={name: {}}))
    errors.pop("evaluate")  # pydantic does not count invalid entries
    assert set(errors) == {"name", "evaluate.0.name", f"arms.{name}.[key]"}


def test_teacher_is_reserved() -> None:
    assert "reserved" in mistakes(raw(arms={"teacher": {}}))["arms.teacher.[key]"]


def test_names_are_unique_whatever_their_case() -> None:
    twice = [{"task": {"name": "questions"}}, {"task": {"name": "questions"}, "name": "Questions"}]
    assert "two evaluations are named" in mistakes(raw(evaluate=twice))["evaluate.1.name"]
    assert "only in case" in mistakes(raw(arms={"a": {}, "A": {}}))["arms.A"]


def test_only_labels_arms_work_without_a_teacher() -> None:
    assert Recipe.model_validate(raw(teacher=None, arms={"a": {"learn": "labels"}})).teacher is None
    errors = mistakes(raw(teacher=None, arms={"a": {"learn": "labels"}, "b": {}}))
    assert list(errors) == ["arms.b"] and "learns from a teacher" in errors["arms.b"]


def test_fitting_needs_held_out_samples() -> None:
    train = {"task": {"name": "questions"}, "validation": 0}
    errors = mistakes(raw(train=train))
    assert "train.validation is 0" in errors["arms.first.recalibrator"]
    assert Recipe.model_validate(raw(train=train, arms={"distill": {}})).train.validation == 0


def test_recalibrators_may_need_more_tokens() -> None:
    arms = {"a": {"recalibrator": {"name": "none", "options": {"tokens": 2}}}}
    assert Recipe.model_validate(raw(arms=arms, knowledge={"top_k": 2}))
    errors = mistakes(raw(arms=arms, knowledge={"top_k": 1}))
    assert errors == {"arms.a.recalibrator": "too few tokens"}


def test_micro_batches_divide_batches() -> None:
    model = {"family": "scratch"}
    student = {"model": model, "training": {"batch_size": 10, "micro_batch_size": 4}}
    assert "does not divide" in mistakes(raw(student=student))["student.training.micro_batch_size"]
    student = {"model": model, "training": {"batch_size": 8, "micro_batch_size": 4}}
    arms = {"a": {"training": {"batch_size": 6}}, "b": {"training": {"epochs": 0.5}}}
    assert list(mistakes(raw(student=student, arms=arms))) == ["arms.a.training"]


def test_an_arm_overrides_training_key_by_key() -> None:
    student = {"model": {"family": "scratch"}, "training": {"batch_size": 8, "epochs": 2}}
    recipe = Recipe.model_validate(raw(student=student, arms={"a": {"training": {"epochs": 5}}}))
    assert training_of(recipe.student, recipe.arms["a"]) == Training(epochs=5, batch_size=8)


class Splits(Fake):
    """A task with some splits."""

    splits: tuple[str, ...] = ("train", "test")


def test_an_evaluation_without_a_task_means_the_training_task() -> None:
    train = {"task": {"name": "questions", "options": {"size": 2.0}}}
    other = {"task": {"name": "questions"}, "name": "other"}
    entries = [{}, {"name": "seen", "split": "train", "limit": 3}, other]
    recipe = Recipe.model_validate(raw(train=train, evaluate=entries))
    first, seen, separate = recipe.evaluate
    assert (first.name, first.split, first.task) == ("questions", "test", recipe.train.task)
    assert (seen.name, seen.split, seen.limit) == ("seen", "train", 3)
    assert seen.task == recipe.train.task != separate.task
    assert recipe.resolved()["evaluate"][0]["task"] == train["task"]
    assert Recipe.model_validate(recipe.resolved()) == recipe


def test_a_recipe_without_evaluate_evaluates_the_test_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(FAKES["tasks"], "questions", Splits)
    recipe = Recipe.model_validate(raw(evaluate=None))
    [evaluation] = recipe.evaluate
    assert (evaluation.name, evaluation.split) == ("questions", "test")
    without = {key: value for key, value in raw().items() if key != "evaluate"}
    assert Recipe.model_validate(without) == recipe
    monkeypatch.setattr(Splits, "splits", ("train", "dev"))
    message = mistakes(without)["evaluate"]
    assert "the training task 'questions' has no split 'test'; it has 'train', 'dev'" in message
    assert "list a different split, for example `evaluate: [{split: validation}]`" in message
    without["train"] = {"task": {"name": "instructions"}}
    assert "'instructions' has no candidates" in mistakes(without)["evaluate"]


def test_mistakes_in_the_training_task_are_not_repeated_for_its_evaluations() -> None:
    train = {"task": {"name": "questions", "options": {"size": -1.0}}}
    found = mistakes(raw(train=train, evaluate=[{}, {"name": "b", "limit": 0}]))
    assert set(found) == {"train.task.options", "evaluate.1.limit"} or set(found) == {
        "train.task.options.size",
        "evaluate.1.limit",
    }


def test_unlabelled_data_need_a_task_that_can_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    train = {"task": {"name": "instructions"}, "unlabelled": {}}
    assert "has no candidates" in mistakes(raw(train=train))["train.unlabelled"]
    train = {"task": {"name": "questions"}, "unlabelled": {"path": "pool.csv"}}
    monkeypatch.setattr(Fake, "unlabelled", lambda self, path: None, raising=False)
    assert "reads no files without labels" in mistakes(raw(train=train))["train.unlabelled"]
    monkeypatch.setattr(Fake, "unlabelled", lambda self, path: self)
    section = Recipe.model_validate(raw(train=train)).train.unlabelled
    assert section is not None and section.path == Path.cwd() / "pool.csv"


def test_only_tasks_with_candidates_are_evaluated() -> None:
    errors = mistakes(raw(evaluate=[{"task": {"name": "instructions"}}]))
    assert "neither candidates nor explanations" in errors["evaluate.0.task"]
    train = {"task": {"name": "instructions"}}
    assert Recipe.model_validate(raw(train=train, arms={"a": {"recalibrate": "all"}}))
    errors = mistakes(raw(train=train, arms={"a": {"recalibrate": "decisive"}}))
    assert "no candidates" in errors["arms.a.recalibrate"]


def test_families_require_or_refuse_a_checkpoint() -> None:
    student = {"model": {"family": "hub"}}
    teacher = {"model": {"family": "scratch", "checkpoint": "owner/name", "revision": "main"}}
    errors = mistakes(raw(student=student, teacher=teacher))
    assert "needs a hub id or a folder" in errors["student.model.checkpoint"]
    assert "takes no checkpoint" in errors["teacher.model.checkpoint"]
    teacher = {"model": {"family": "scratch", "revision": "main"}}
    assert "without a checkpoint" in mistakes(raw(teacher=teacher))["teacher.model.revision"]


def test_checkpoints_are_folders_or_hub_ids(tmp_path: Path) -> None:
    (tmp_path / "local" / "model").mkdir(parents=True)

    def checkpoint(text: str) -> str | None:
        model = {"family": "hub", "checkpoint": SourcedStr(text, tmp_path)}
        return Recipe.model_validate(raw(student={"model": model})).student.model.checkpoint

    local = str(tmp_path / "local" / "model")
    assert checkpoint("./local/model") == checkpoint("local/model") == checkpoint(local) == local
    assert checkpoint("owner/name-1.5b") == "owner/name-1.5b"
    assert checkpoint("gpt2") == "gpt2"
    for missing in ("./gone", "/gone", "~/gone-for-good", "a/b/c", "", "../x"):
        with pytest.raises(ValidationError, match="expected a hub id"):
            checkpoint(missing)


def test_the_plugin_validates_options_and_paths_become_absolute(tmp_path: Path) -> None:
    options = {"path": SourcedStr("data", tmp_path), "size": 2}
    task = {"name": "questions", "options": options}
    recipe = Recipe.model_validate(raw(train={"task": task}))
    assert recipe.train.task.given == {"path": str(tmp_path / "data"), "size": 2.0}
    wrong = {"name": "questions", "options": {"size": 0, "pth": 1}}
    assert set(mistakes(raw(train={"task": wrong}))) == {
        "train.task.options.size",
        "train.task.options.pth",
    }


def test_a_plugin_section_has_given_and_effective_options() -> None:
    train = {"task": {"name": "questions", "options": {"size": 2}}}
    task = Recipe.model_validate(raw(train=train)).train.task
    assert task.options == FakeOptions(size=2)
    assert task.given == {"size": 2.0}
    assert task.effective == {"path": None, "size": 2.0, "tokens": 1}
    assert task.build().options is task.options


def test_each_set_of_options_is_validated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    validated = []

    class Counted(FakeOptions):
        @model_validator(mode="before")
        @classmethod
        def _count(cls, options: object) -> object:
            validated.append(options)
            return options

    monkeypatch.setattr(Fake, "Options", Counted)
    recipe = Recipe.model_validate(raw(arms={"a": {}, "b": {}}))
    assert len(validated) == len(("train", "evaluate", "teacher", "student", "a", "b"))
    recipe.train.task.build()
    recipe.student.model.build()
    recalibrator = recipe.arms["a"].recalibrator
    assert recalibrator
    recalibrator.build()
    recipe.model_copy(update={"seed": 1}).model_dump(mode="json")
    assert len(validated) == 6


def test_all_mistakes_are_reported_at_once() -> None:
    wrong = raw(
        seed=True,
        extra=1,
        train={"task": {"name": "qestions"}, "validation": 1},
        evaluate=[],
        student={"model": {"family": "nope"}, "training": {"epochs": "three", "batch_size": 0}},
        knowledge={"top_k": 0},
        arms={"a": {"recalibrator": {"name": "nothing"}}},
    )
    assert set(mistakes(wrong)) == {
        "seed",
        "extra",
        "train.task.name",
        "train.validation",
        "evaluate",
        "student.model.family",
        "student.training.epochs",
        "student.training.batch_size",
        "knowledge.top_k",
        "arms.a.recalibrator.name",
    }


@pytest.mark.parametrize("epochs", [float("nan"), float("inf"), 0, -1, "3", True, None])
def test_epochs_are_positive_numbers(epochs: object) -> None:
    student = {"model": {"family": "scratch"}, "training": {"epochs": epochs}}
    assert list(mistakes(raw(student=student))) == ["student.training.epochs"]


def test_recipes_are_immutable() -> None:
    recipe = Recipe.model_validate(raw())
    with pytest.raises(ValidationError):
        recipe.seed = 2  # type: ignore[misc]


def test_references_build_plugins() -> None:
    recipe = Recipe.model_validate(raw())
    recalibrator = recipe.arms["first"].recalibrator
    assert recipe.train.task.build().options == FakeOptions()
    assert isinstance(recipe.student.model.build(), Scratch)
    assert recalibrator and recalibrator.build().needs_fit


def test_every_field_is_described() -> None:
    schema = Recipe.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for name, field in section["properties"].items():
            if section.get("title") != "TrainingOverrides":  # described in Training
                assert "description" in field or "$ref" in field, f"{section['title']}.{name}"


def test_importing_the_recipe_packages_imports_nothing_heavy() -> None:
    program = "import sys, firstcli.recipe.load, firstcli.recipe.starters; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    loaded = set(done.stdout.decode().split())
    assert not loaded & {"torch", "transformers", "datasets", "sklearn", "scipy", "matplotlib"}
