"""The model card of a trained model: what it does, its numbers, and how it is used.

The upper part follows from `firstcli.json` alone. The lower part, from the heading `Training` on,
describes the run; an exported folder keeps it as it is in the folder that was exported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from firstcli.errors import UserError
from firstcli.recipe.sections import RENORMALIZED, Arm, training_of
from firstcli.runtime.redaction import without_folders, without_secrets
from firstcli.stages.base import TrainingFacts
from firstcli.student.usage import StoredEstimate, Usage
from firstcli.tasks.tables import TableRow
from firstcli.tasks.usage import BuiltPrompt, built_prompt
from firstcli.workspace.run import Run, as_yaml
from firstcli.workspace.units import Model, part_of, teachers_of

CARD = "README.md"
FIGURE = "reliability.png"
PAPER = '"FIRST: Efficient Trustworthy Distillation" (arXiv 2408.12168)'
_LOWER_PART = "\n## Training\n"
_MOST_LABELS = 20


@dataclass(frozen=True, slots=True)
class CardParts:
    """What a card says besides the content of `firstcli.json`."""

    front_matter: str
    """YAML for the hub."""
    training: str
    """The lower part, without its heading."""


def card(usage: Usage, parts: CardParts, *, figure: bool, adapter: bool = False) -> str:
    """Return the text of a model card.

    Args:
        usage: the content of `firstcli.json`.
        parts: the rest.
        figure: whether the folder contains the reliability diagram.
        adapter: whether the folder contains an adapter instead of a whole model.
    """
    sections = [
        f"---\n{parts.front_matter.strip()}\n---\n\n# {usage.run}: {usage.title}\n",
        _what_it_does(usage),
        _numbers(usage, figure),
        _prompt(usage),
        _use(usage, adapter),
        f"## Training\n\n{parts.training.strip()}\n",
    ]
    return without_secrets("\n".join(section for section in sections if section))


def read_parts(folder: Path) -> CardParts:
    """Return the parts of a folder's card that do not follow from `firstcli.json`."""
    path = folder / CARD
    text = path.read_text("utf-8") if path.is_file() else ""
    _, _, rest = text.partition("---\n")
    front_matter, _, rest = rest.partition("\n---\n")
    training = rest.partition(_LOWER_PART)[2]
    return CardParts(front_matter or _front_matter(None), training or "Unknown.")


def run_parts(run: Run, model: Model, facts: TrainingFacts) -> CardParts:
    """Return what a run knows about a model that it has trained."""
    section = run.model_section("student" if model.arm else "teacher")
    on_hub = run.reference("student" if model.arm else "teacher").folder is None
    base = section.checkpoint if section.checkpoint and on_hub else None
    return CardParts(_front_matter(base), _training(run, model, facts))


def _front_matter(base: str | None) -> str:
    about: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    about["tags"] = ["firstcli", "knowledge-distillation", "calibration"]
    return as_yaml(about | ({"base_model": base} if base else {}))


def _what_it_does(usage: Usage) -> str:
    if usage.kind == "instruction":
        does = "It answers instructions with text, and each token has a probability."
    elif usage.labels:
        does = f"It chooses one of {len(usage.labels)} answers, and says how sure it is."
    else:
        does = "It chooses one of the answers that a question offers, and says how sure it is."
    return (
        f"{does}\nIt was trained on the task `{usage.task}` by firstcli {usage.firstcli}, which "
        f"implements\n{PAPER}.\n\n{_temperature(usage)}\n"
    )


def _temperature(usage: Usage) -> str:
    if usage.folded is not None:
        return (
            "Its probabilities are calibrated by the temperature "
            f"T = {usage.folded.temperature:.4g}, "
            "which is folded\ninto the weights: any program that runs the model shows them."
        )
    if usage.posthoc is None:
        return "Its probabilities are used as they are, without a temperature."
    if usage.kind == "instruction":
        return (
            f"The confidences below are recalibrated by `{usage.posthoc.name}`, which was fitted "
            "to the answers of\ngenerated explanations. It is **not** part of the weights, and "
            "`first predict` does not apply it to text."
        )
    if usage.posthoc.temperature is not None:
        return (
            f"Its logits are divided by the temperature T = {usage.posthoc.temperature:.4g}, which "
            "is **not** part\nof the weights: `first predict` applies it, and `first export` folds "
            "it into the weights for\nother programs."
        )
    return (
        f"Its probabilities are recalibrated by `{usage.posthoc.name}`, which is **not** part of "
        "the weights:\n`first predict` applies it."
    )


def _numbers(usage: Usage, figure: bool) -> str:
    rows = [
        f"| {name} | {numbers.questions} | "
        f"{' | '.join(_cell(each) for each in (numbers.accuracy, numbers.ece, numbers.trust))} |"
        for name, numbers in usage.numbers.items()
    ]
    if not rows:
        return "## Numbers\n\nIt has not been evaluated yet.\n"
    picture = (
        f"\n![Reliability diagram: accuracy by confidence]({FIGURE})\n{_CAPTION}" if figure else ""
    )
    table = "\n".join(
        ["| evaluation | questions | accuracy | ECE | Trust |", "|---|---|---|---|---|"]
    )
    return (
        f"## Numbers\n\n{table}\n{chr(10).join(rows)}\n\nIn percent, with 95 % intervals over "
        "questions. Trust is accuracy minus ECE; the ECE has bins of equal\nwidth. The confidence "
        f"is the answer's probability {_KINDS[usage.confidence]}.\n{picture}"
    )


_CAPTION = """
Black lines show the accuracy of each bin with its 95 % interval; shaded bands contain 95 % of
calibrated models. Confidence equals accuracy on the diagonal.
"""
_KINDS = {"candidates": "among the candidates", "full": "in the whole vocabulary"}


def _cell(estimate: StoredEstimate | None) -> str:
    if estimate is None:
        return "–"
    low, high = (f"{100 * value:.1f}" for value in (estimate.low, estimate.high))
    return f"{100 * estimate.value:.1f} [{low}, {high}]"


def _prompt(usage: Usage) -> str:
    whole = list(usage.inputs) == ["prompt"] and usage.prompt == "{prompt}"
    chat = _CHAT if usage.chat else ""
    text = f"## Prompt\n\n{chat}{_WHOLE_PROMPTS if whole else _block('text', usage.prompt)}"
    if not usage.labels:
        return text
    shown = usage.labels[:_MOST_LABELS]
    rows = "\n".join(f"| {_code(label.name)} | {_code(label.response)} |" for label in shown)
    more = len(usage.labels) - len(shown)
    rest = f"\n\nand {more} more, which `firstcli.json` lists." if more else ""
    return f"{text}\n| answer | response of the model |\n|---|---|\n{rows}{rest}\n"


_CHAT = (
    "It is the user's message of a chat, which the tokenizer's chat template renders. Answers\n"
    "follow without a space in front.\n\n"
)
_WHOLE_PROMPTS = "The model reads complete prompts, worded as in its training data.\n"


def _code(text: str) -> str:
    """Return a text as code in a table's cell; leading blanks stay visible."""
    safe = text.replace("|", "\\|").replace("\n", "\\n")
    return f"`` {safe} ``" if "`" in safe else f"`{safe}`"


def _use(usage: Usage, adapter: bool) -> str:
    """Return commands and code; each block is run by firstcli's tests, unless it says otherwise."""
    parts = [
        "## Use\n\nWith firstcli, which builds the prompt "
        f"from your columns:\n\n{_block('sh', _predict_command(usage))}"
    ]
    example = _example(usage)
    if example is not None:
        outside = usage.posthoc is not None and usage.posthoc.temperature is None
        caution = " without its recalibrator" if outside else ""
        library = "transformers and peft" if adapter else "transformers"
        loads = _ADAPTED if adapter else _WHOLE
        parts.append(
            f"With {library}{caution}, from this folder:\n\n"
            f"{_block('python', _transformers_code(usage, example, loads))}"
        )
    if adapter:
        parts.append(_MERGE)
    elif example is not None:
        parts.append(
            "With vLLM, whose `logprobs` cover the whole vocabulary (firstcli's tests do not run "
            f"this block):\n\n{_block('python', _vllm_code(usage, example))}"
        )
    return "\n".join(parts)


_WHOLE = """
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
"""
_ADAPTED = """
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
config = PeftConfig.from_pretrained(".")
base = AutoModelForCausalLM.from_pretrained(
    config.base_model_name_or_path, revision=config.revision
)
model = PeftModel.from_pretrained(base, ".")
"""
_MERGE = (
    "This folder holds an adapter (LoRA), which changes the weights of the model that\n"
    "`adapter_config.json` names. For vLLM and other programs, merge the two:\n\n"
    "~~~sh\nfirst export . ../merged\n~~~\n"
)


def _block(language: str, text: str) -> str:
    longest = max(map(len, re.findall("~+", text)), default=0)
    fence = "~" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}\n"


def _predict_command(usage: Usage) -> str:
    if usage.text_column is not None and usage.kind != "instruction":
        return 'first predict . "Write your text here."'
    return "first predict . --file rows.csv --out answers.csv"


def _example(usage: Usage) -> BuiltPrompt | None:
    """Return the prompt and the candidates of an invented row; None for free text."""
    if usage.kind == "instruction":
        return None
    row: dict[str, Any] = {name: "Write your text here." for name in usage.columns}
    if form := usage.choices:
        answers = ["the first answer", "the second answer"]
        whole = form.separator.join(answers) if form.separator else answers
        row |= (
            dict(zip(form.columns, answers, strict=False))
            if form.separate
            else {name: whole for name in form.columns}
        )
    try:
        return built_prompt(usage, TableRow("card", row))
    except UserError:  # a form that an invented row does not suit
        return None


def _scaled(usage: Usage, logits: str) -> str:
    if usage.posthoc is None or usage.posthoc.temperature is None:
        return logits
    return f"({logits} / {usage.posthoc.temperature!r})"


def _encoded(usage: Usage, example: BuiltPrompt) -> str:
    """Return code that encodes an example's prompt with each answer."""
    answers = f"answers = {list(example.candidates)!r}"
    if not usage.chat:
        return (
            f"prompt = {example.prompt!r}\n{answers}\n"
            'tokens = [tokenizer(prompt + answer)["input_ids"] for answer in answers]'
        )
    system = [] if usage.system is None else [{"role": "system", "content": usage.system}]
    messages = [*system, {"role": "user", "content": example.prompt}]
    return f"""messages = {messages!r}
{answers}
options = dict(tokenize=False, enable_thinking=False)
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
turn = {{"role": "assistant", "content": "ANSWER"}}
start, _, _ = tokenizer.apply_chat_template([*messages, turn], **options).rpartition("ANSWER")
blank = start[len(prompt) :] if start.startswith(prompt) else ""
texts = [prompt + (blank if blank.isspace() else "") + answer.strip() for answer in answers]
tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]"""


def _transformers_code(usage: Usage, example: BuiltPrompt, loads: str) -> str:
    return f"""
import torch
{loads.strip()}

{_encoded(usage, example)}
decisive = next(i for i, ids in enumerate(zip(*tokens)) if len(set(ids)) > 1)
with torch.no_grad():
    logits = model(torch.tensor([tokens[0][:decisive]])).logits[0, -1].float()
of_answers = logits[[ids[decisive] for ids in tokens]]
probabilities = {_scaled(usage, "of_answers")}.softmax(-1)
print(answers[int(probabilities.argmax())], float(probabilities.max()))
"""


def _vllm_code(usage: Usage, example: BuiltPrompt) -> str:
    logits = "torch.tensor([logprobs[ids[decisive]].logprob for ids in tokens])"
    return f"""
import torch
from vllm import LLM, SamplingParams

llm = LLM(".", max_logprobs=-1)
tokenizer = llm.get_tokenizer()
{_encoded(usage, example)}
decisive = next(i for i, ids in enumerate(zip(*tokens)) if len(set(ids)) > 1)
settings = SamplingParams(max_tokens=1, temperature=0, logprobs=-1)
(result,) = llm.generate({{"prompt_token_ids": tokens[0][:decisive]}}, settings)
logprobs = result.outputs[0].logprobs[0]
probabilities = {_scaled(usage, logits)}.softmax(-1)
print(answers[int(probabilities.argmax())], float(probabilities.max()))
"""


_MASSES = """
P is the teacher's mean probability mass on its top {} tokens, and Q is the
student's mass on the same tokens at the end of training.
"""

_TRAINING = """
- **Arm**: `{arm}`, which learns {source}.
- **Base model**: {base}.
- **Data**: task `{task}`, {samples} training samples;
  {held_out} held out, on which no model was trained.{unlabelled}
- **Training**: {epochs}, {batch_size} sequences per step, peak learning
  rate {learning_rate:g}, seed {seed}.{weights}
- **Licence of these weights**: unknown – fill in, and add `license` to the header of this card.
- **Licence of the base model**: {base_licence}.
- **Licence of the data**: unknown – fill in.

| quantity | value |
|---|---|
{numbers}
{masses}
## Recipe

~~~yaml
{recipe}
~~~
{arm_settings}"""


_UNLABELLED = """
  {} more samples have no label: of them it learned
  the teacher's probabilities at the answer position."""


_COPIES = """
  In each epoch, {} copies with other prompts could stand for these samples."""


_WEIGHTS = """
- **Weights**: the {}."""


_WRITTEN = """
  The teacher wrote the responses of {} more samples."""


def _training(run: Run, model: Model, facts: TrainingFacts) -> str:
    recipe = run.recipe
    arm = recipe.arms[model.arm] if model.arm else None
    settings = (
        training_of(recipe.student, arm) if arm else recipe.teacher and recipe.teacher.finetune
    )
    assert settings
    section = run.model_section("student" if model.arm else "teacher")
    values = facts.as_json().items()
    numbers = [(name, f"{n:.6g}" if isinstance(n, float) else n) for name, n in values]
    own = run.publishable["arms"][model.arm] if arm else None
    return _TRAINING.format(
        arm=model.arm or "teacher",
        source=_source_of_targets(run, arm) if arm else "the data's labels",
        base=without_folders(section.checkpoint) or f"new weights (family {section.family})",
        base_licence=_base_licence(run, model),
        task=recipe.train.task.name,
        samples=facts.in_the_data,
        unlabelled="".join(
            text.format(count)
            for text, count in (
                (_UNLABELLED, facts.unlabelled),
                (_WRITTEN, facts.written),
                (_COPIES, facts.copies),
            )
            if count
        ),
        held_out=len(run.training.validation),
        **settings.model_dump(include={"batch_size", "learning_rate"}),
        epochs=f"{settings.epochs:g} epoch{'s' * (settings.epochs != 1)}",
        seed=_seed(run, model),
        weights=_WEIGHTS.format(settings.saved_weights) if settings.saved_weights else "",
        numbers="\n".join(f"| {name.replace('_', ' ')} | {text} |" for name, text in numbers),
        masses=""
        if facts.P is None
        else _MASSES.format((arm and arm.top_k) or recipe.knowledge.top_k),
        recipe=run.publishable_text.strip(),
        arm_settings=f"\n## This arm\n\n{_block('yaml', as_yaml(own))}" if own else "",
    )


def _seed(run: Run, model: Model) -> int:
    if not model.arm:
        return run.teacher_seed
    return run.recipe.seed if model.seed is None else model.seed


def _base_licence(run: Run, model: Model) -> str:
    """Return the licence that the base model's own card states, if the card is at hand."""
    ref = run.reference("student" if model.arm else "teacher")
    if ref.checkpoint is None:
        return "none, because the weights are new"
    path = None if ref.folder is None else ref.folder / CARD
    if path is None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(ref.checkpoint, CARD, revision=ref.revision)
        path = Path(cached) if isinstance(cached, str) else None
    if path is not None and path.is_file():
        text = path.read_text("utf-8", errors="replace")
        try:
            about = yaml.safe_load(text.partition("---\n")[2].partition("\n---")[0])
        except yaml.YAMLError:
            about = None
        if isinstance(about, dict) and about.get("license"):
            return f"{about['license']}, as its card says"
    return "unknown – fill in"


def _source_of_targets(run: Run, arm: Arm) -> str:
    """Describe what an arm learns from."""
    if arm.recalibrator is None:
        return "the data's labels"
    model = run.model_section("teacher")
    source = without_folders(model.checkpoint) or f"a teacher of family {model.family}"
    unseen = " that has not seen the sample" if part_of(run.recipe, arm) == "out-of-fold" else ""
    count = len(teachers_of(run.recipe, arm))
    source = source if count == 1 else f"{count} teachers, fine-tuned from {source}, on average"
    if run.recipe.knowledge.draws is not None:
        return f"{run.recipe.knowledge.draws} tokens drawn at each position from {source}{unseen}"
    top_k = arm.top_k or run.recipe.knowledge.top_k
    outcome = "candidate" if run.recipe.knowledge.over_candidates else "token"
    gate = ""
    if arm.objective and arm.objective.name == "hard-gate":
        gate = ", and the label where it is less sure of it than these"
    elif arm.objective and arm.objective.name not in ("topk-tail", RENORMALIZED):
        gate = f", with the objective `{arm.objective.title}`"
    each = "each " * (arm.teachers == "recalibrated-mean")
    return (
        f"the top {top_k} {outcome} probabilities of {source}{unseen}"
        f", {each}recalibrated by `{arm.recalibrator.name}`{gate}"
    )
