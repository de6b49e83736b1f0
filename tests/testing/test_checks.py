"""The conformance checks: sound plugins pass, and each breach of the contract is named."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from firstcli.api import (
    JSON,
    Adaptation,
    BoolArray,
    Curve,
    Diagnostics,
    Dtype,
    FloatArray,
    MassMode,
    ModelFamily,
    ModelRef,
    PluginOptions,
    Recalibrator,
    Sample,
    Split,
    Task,
    UserError,
)
from firstcli.testing import check_family, check_recalibrator, check_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# --- recalibrators ------------------------------------------------------------------------------


class Sound(Recalibrator[PluginOptions]):
    """Mix with the uniform distribution, by the share of first tokens that are wrong."""

    def __init__(self, options: PluginOptions) -> None:
        super().__init__(options)
        self.wrong: float | None = None

    @property
    def needs_fit(self) -> bool:
        return True

    def fit(
        self, topk: FloatArray, is_label: BoolArray, mass: FloatArray, mass_mode: MassMode
    ) -> None:
        self.wrong = 1 - float(is_label[:, 0].mean())

    def transform(self, topk: FloatArray) -> FloatArray:
        if self.wrong is None:
            raise RuntimeError("not fitted")
        shares = topk / topk.sum(axis=1, keepdims=True)
        target: FloatArray = (1 - self.wrong) * shares + self.wrong / topk.shape[1]
        return target

    def state(self) -> dict[str, JSON]:
        return {"wrong": self.wrong}

    def restore(self, state: Mapping[str, JSON]) -> None:
        self.wrong = state["wrong"]


class RowsSumToTwo(Sound):
    def transform(self, topk: FloatArray) -> FloatArray:
        return 2 * super().transform(topk)


class Negative(Sound):
    def transform(self, topk: FloatArray) -> FloatArray:
        target = super().transform(topk)
        target[:, 0] += 1
        target[:, -1] -= 1
        return target


class NotFinite(Sound):
    def transform(self, topk: FloatArray) -> FloatArray:
        return super().transform(np.where(topk == 0, math.nan, topk))


class OneColumn(Sound):
    def transform(self, topk: FloatArray) -> FloatArray:
        return super().transform(topk)[:, :1]


class Reversing(Sound):
    def transform(self, topk: FloatArray) -> FloatArray:
        return super().transform(topk)[:, ::-1]


class DeclaredReversing(Reversing):
    order_preserving = False


class ModifyingItsInput(Sound):
    def transform(self, topk: FloatArray) -> FloatArray:
        topk /= topk.sum(axis=1, keepdims=True)
        return super().transform(topk)


class ModifyingTheValidationPart(Sound):
    def fit(
        self, topk: FloatArray, is_label: BoolArray, mass: FloatArray, mass_mode: MassMode
    ) -> None:
        super().fit(topk, is_label, mass, mass_mode)
        is_label[:] = False


class LookingAtTheFirstRow(Sound):
    def transform(self, topk: FloatArray) -> FloatArray:
        return super().transform(np.repeat(topk[:1], len(topk), axis=0))


class LookingAtTheWholeBatch(Sound):
    def transform(self, topk: FloatArray) -> FloatArray:
        target = super().transform(topk)
        target += len(topk)
        target /= target.sum(axis=1, keepdims=True)
        return target


class Drifting(Sound):
    fits: ClassVar[int] = 0

    def fit(
        self, topk: FloatArray, is_label: BoolArray, mass: FloatArray, mass_mode: MassMode
    ) -> None:
        Drifting.fits += 1
        self.wrong = 1 / (1 + Drifting.fits)


class LearningFromTheFirstRow(Sound):
    def fit(
        self, topk: FloatArray, is_label: BoolArray, mass: FloatArray, mass_mode: MassMode
    ) -> None:
        self.wrong = 1 - float(topk[0, 0])


class MistakingAllOnesForMassOne(Sound):
    """Divide by the mass outside the top k, unless the mode is `one`."""

    def fit(
        self, topk: FloatArray, is_label: BoolArray, mass: FloatArray, mass_mode: MassMode
    ) -> None:
        outside = 1.0 if mass_mode == "one" else float((1 - mass).sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            self.wrong = float(np.divide(0.5 * outside, outside))


class FullyDiagnosed(Sound):
    def diagnostics(self) -> Diagnostics:
        curve = Curve(((0.1, 2.0), (0.2, 1.0)), 0.2, (0.1, 0.2))
        return Diagnostics({"wrong": self.wrong}, ("too many are wrong",), {"nll": curve})


class WithoutDiagnostics(Sound):
    def diagnostics(self) -> Diagnostics:
        return None  # type: ignore[return-value]


class NumpyInItsFacts(Sound):
    def diagnostics(self) -> Diagnostics:
        return Diagnostics({"wrong": np.float64(self.wrong or 0.0), "rows": np.arange(3)})


class TemperatureOfNoNumber(Sound):
    def diagnostics(self) -> Diagnostics:
        return Diagnostics({"temperature": {"first": 0.3}})


class WarningOverTwoLines(Sound):
    def diagnostics(self) -> Diagnostics:
        return Diagnostics(warnings=("too many\nare wrong",))


class CurveWithoutItsBest(Sound):
    def diagnostics(self) -> Diagnostics:
        return Diagnostics(curves={"nll": Curve(((0.1, 2.0), (0.2, 1.0)), 0.3)})


class ForgettingItsDiagnostics(Sound):
    fitted = False

    def fit(
        self, topk: FloatArray, is_label: BoolArray, mass: FloatArray, mass_mode: MassMode
    ) -> None:
        super().fit(topk, is_label, mass, mass_mode)
        self.fitted = True

    def diagnostics(self) -> Diagnostics:
        return Diagnostics({"wrong": self.wrong} if self.fitted else {})


class WorkingUnfitted(Sound):
    def transform(self, topk: FloatArray) -> FloatArray:
        self.wrong = self.wrong or 0.0
        return super().transform(topk)


class ForgettingItsState(Sound):
    def restore(self, state: Mapping[str, JSON]) -> None:
        pass


class RoundingItsState(Sound):
    def state(self) -> dict[str, JSON]:
        return {"wrong": round(self.wrong or 0.0, 2)}


class NumpyInItsState(Sound):
    def state(self) -> dict[str, JSON]:
        return {"wrong": np.array([self.wrong])}


class NanInItsState(Sound):
    def state(self) -> dict[str, JSON]:
        return {"wrong": self.wrong, "spread": math.nan}


class DividingByTheMisses(Sound):
    def fit(
        self, topk: FloatArray, is_label: BoolArray, mass: FloatArray, mass_mode: MassMode
    ) -> None:
        super().fit(topk, is_label, mass, mass_mode)
        if self.wrong == 0:
            self.wrong = math.nan


class RefusingFive(Sound):
    def transform(self, topk: FloatArray) -> FloatArray:
        if topk.shape[1] == 5:
            raise UserError("five is too many")
        return super().transform(topk)


class RefusingOne(Sound):
    def transform(self, topk: FloatArray) -> FloatArray:
        if topk.shape[1] == 1:
            raise UserError("one is too few")
        return super().transform(topk)


@pytest.mark.parametrize("cls", [Sound, DeclaredReversing, RefusingOne, FullyDiagnosed])
def test_a_sound_recalibrator_passes(cls: type[Recalibrator[Any]]) -> None:
    check_recalibrator(cls)


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (RowsSumToTwo, "returns rows that do not sum to 1"),
        (Negative, "returns a negative probability"),
        (NotFinite, r"returns NaN or infinity \(extreme rows\)"),
        (OneColumn, r"turns shape \(240, 2\) into \(240, 1\)"),
        (Reversing, "changes the order within a row .*: set order_preserving = False"),
        (ModifyingItsInput, "transform modifies its input"),
        (ModifyingTheValidationPart, "fit modifies its input 'is_label'"),
        (LookingAtTheFirstRow, "depends on the order of the rows"),
        (LookingAtTheWholeBatch, "depends on how the rows are split"),
        (Drifting, "fit is not deterministic: the same rows give a different state"),
        (LearningFromTheFirstRow, "fit depends on the order of the rows"),
        (MistakingAllOnesForMassOne, "NaN or infinity .*fitted where the top k holds all prob"),
        (WithoutDiagnostics, "diagnostics does not return Diagnostics"),
        (NumpyInItsFacts, "diagnostics is not valid JSON"),
        (TemperatureOfNoNumber, "temperature cannot be {'first': 0.3}"),
        (WarningOverTwoLines, "is not a warning of one line"),
        (CurveWithoutItsBest, "the curve 'nll' is malformed"),
        (ForgettingItsDiagnostics, "diagnostics differs after its state went through JSON"),
        (WorkingUnfitted, "needs a fit, but its transform works without one"),
        (ForgettingItsState, "cannot be restored from its state: RuntimeError"),
        (RoundingItsState, "transform differs after its state went through JSON"),
        (NumpyInItsState, "state is not valid JSON"),
        (NanInItsState, "state is not valid JSON"),
        (DividingByTheMisses, "NaN or infinity .*fitted where the label is always the first"),
        (RefusingFive, "rejects k = 5: five is too many"),
        (int, "int is not a firstcli.api.Recalibrator"),
    ],
)
def test_a_broken_recalibrator_is_named(cls: type[Recalibrator[Any]], sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_recalibrator(cls)


# --- tasks --------------------------------------------------------------------------------------

QUESTION = Sample.question("Is water wet?\nA:", (" yes", " no"), 0, id="q1", truth=(0.9, 0.1))
UNANSWERABLE = Sample.question("Is zorn plim?\nA:", (" yes", " no"), None, id="q1")
INSTRUCTION = Sample(prompt="Say hello.\n", response="Hello.")


class Given(Task[PluginOptions]):
    """A task over given samples."""

    def __init__(self, *samples: Sample) -> None:
        super().__init__(PluginOptions())
        self.samples = samples

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def load(self, split: str) -> Split:
        return Split(list(self.samples))


class Evaluated(Given):
    splits = ("test",)


class GivenInstructions(Given):
    has_candidates = False


class Shrinking(Given):
    def load(self, split: str) -> Split:
        self.samples = self.samples[1:]
        return Split(list(self.samples))


class WithoutSplits(Given):
    splits = ()


class WithOneSplitTwice(Given):
    splits = ("train", "train")


def test_a_sound_task_passes() -> None:
    check_task(Given(QUESTION, replace(QUESTION, id="q2", truth=None)))
    check_task(Given(replace(QUESTION, id=None), replace(QUESTION, id=None)))
    check_task(GivenInstructions(INSTRUCTION, replace(INSTRUCTION, response="")))
    check_task(Evaluated(UNANSWERABLE, replace(UNANSWERABLE, id="q2")))
    check_task(Given(QUESTION, replace(UNANSWERABLE, id="q2")))  # one of them is unlabelled


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (WithoutSplits(QUESTION), "splits is empty"),
        (WithOneSplitTwice(QUESTION), "names a split twice"),
        (Given(), "split 'train': has no samples"),
        (Shrinking(QUESTION, QUESTION, QUESTION), "loading it twice gives different samples"),
        (Given(QUESTION, QUESTION), "two samples have the same id"),
        (Given(replace(QUESTION, prompt=" \n")), "sample 'q1': the prompt is empty"),
        (GivenInstructions(QUESTION), "the task has no candidates"),
        (Given(INSTRUCTION), "has 0 candidates, expected 2 to 1,000"),
        (Given(replace(QUESTION, candidates=(" yes",))), "has 1 candidates"),
        (Given(replace(QUESTION, candidates=tuple(map(str, range(1001))))), "has 1001 candidates"),
        (Given(replace(QUESTION, candidates=(" yes", " yes"))), "two candidates are the same"),
        (Given(replace(QUESTION, answer=2)), "answer is 2, expected 0 to 1"),
        (Given(replace(QUESTION, answer=None)), "no right answer, but has a response or a truth"),
        (Given(UNANSWERABLE), "no sample has a right answer"),
        (Evaluated(replace(UNANSWERABLE, response=" no")), "no right answer, but has a response"),
        (Evaluated(replace(UNANSWERABLE, truth=(0.9, 0.1))), "no right answer, but has a response"),
        (Given(replace(QUESTION, candidates=("", " no"), response="")), "a candidate is empty"),
        (Given(replace(QUESTION, answer=1)), "the response is not the right candidate"),
        (Given(replace(QUESTION, truth=(1.0,))), "truth does not have one number per candidate"),
        (Given(replace(QUESTION, truth=(1.1, -0.1))), "a true probability is negative"),
        (Given(replace(QUESTION, truth=(0.5, 0.4))), "truth does not sum to 1"),
        (object(), "object is not a firstcli.api.Task"),
    ],
)
def test_a_broken_task_is_named(task: Any, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_task(task)


class AdaptedOptions(PluginOptions):
    codes: list[str] | None = None


class Adapting(Given):
    """Adds a code whenever it is adapted."""

    Options = AdaptedOptions

    def __init__(self, options: Any) -> None:
        super().__init__(QUESTION)
        self.options = options

    def adapted(self, tokens: Any, training: Any) -> Any:
        options: Any = self.options
        codes = [*(options.codes or ()), "A"]
        return Adaptation(options.model_copy(update={"codes": codes}))


class Unadapted(Adapting):
    def adapted(self, tokens: Any, training: Any) -> Any:
        return self.options


class Unsaved(Adapting):
    def adapted(self, tokens: Any, training: Any) -> Any:
        values: dict[str, Any] = {"codes": ("A",)}
        return Adaptation(AdaptedOptions.model_construct(**values))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Adapting, "adapting the adapted options changes them"),
        (Unadapted, "returns no Adaptation"),
        (Unsaved, "do not survive being saved as JSON"),
    ],
)
def test_a_task_that_adapts_wrongly_is_named(kind: type[Adapting], sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_task(kind(AdaptedOptions()))


# --- families -----------------------------------------------------------------------------------


class Letters(ModelFamily[PluginOptions]):
    """A tiny Llama over single characters."""

    needs_checkpoint = False
    needs_text = True
    rows: ClassVar[int] = 0
    """Rows of the embedding beyond the tokenizer's tokens."""

    def tokenizer(self, ref: ModelRef, text: Iterable[str]) -> PreTrainedTokenizerBase:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        letters = sorted({letter for each in text for letter in each})
        vocabulary = {letter: i for i, letter in enumerate(["<unk>", "</s>", *letters])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>"
        )

    def empty_model(self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        import torch

        with torch.device("meta"):
            return self._built(len(tokenizer))

    def model(
        self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase, dtype: Dtype, seed: int
    ) -> PreTrainedModel:
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self._built(len(tokenizer))

    def _built(self, vocabulary: int) -> PreTrainedModel:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=vocabulary + self.rows,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
        return LlamaForCausalLM(config)


class PaddedVocabulary(Letters):
    rows = 7


class TooFewRows(Letters):
    rows = -1


class RealWeights(Letters):
    def empty_model(self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        return self._built(len(tokenizer))


class OtherShape(Letters):
    def empty_model(self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        import torch

        with torch.device("meta"):
            return self._built(len(tokenizer) + 1)


class Unseeded(Letters):
    def model(
        self, ref: ModelRef, tokenizer: PreTrainedTokenizerBase, dtype: Dtype, seed: int
    ) -> PreTrainedModel:
        return self._built(len(tokenizer))


class SkippingLetters(Letters):
    def tokenizer(self, ref: ModelRef, text: Iterable[str]) -> PreTrainedTokenizerBase:
        from tokenizers import Regex, normalizers

        tokenizer: Any = super().tokenizer(ref, text)
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[AQ]"), "")
        return tokenizer  # type: ignore[no-any-return]


class HalfPrecision(Letters):
    def _built(self, vocabulary: int) -> PreTrainedModel:
        model = super()._built(vocabulary)
        model.half()
        return model


class SeesTheFuture(Letters):
    def _built(self, vocabulary: int) -> PreTrainedModel:
        model = super()._built(vocabulary)
        model.config.is_causal = False
        return model


class LoadsInPart(Letters):
    def load_trained(self, folder: Path, dtype: Dtype) -> PreTrainedModel:
        from transformers import LlamaForCausalLM

        return LlamaForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("cls", [Letters, PaddedVocabulary])
def test_a_sound_family_passes(cls: type[ModelFamily[Any]]) -> None:
    check_family(cls)


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (TooFewRows, "fewer than its tokenizer's"),
        (SeesTheFuture, "it is not causal"),
        (LoadsInPart, "load_trained passes over weights"),
        (RealWeights, "empty_model allocates weights"),
        (OtherShape, "empty_model and model have different parameters"),
        (Unseeded, "gives different weights for the same seed"),
        (SkippingLetters, "the offsets do not cover all of 'Q: Is water wet"),
        (HalfPrecision, "does not have the requested dtype"),
        (int, "int is not a firstcli.api.ModelFamily"),
    ],
)
def test_a_broken_family_is_named(cls: type[ModelFamily[Any]], sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_family(cls)
