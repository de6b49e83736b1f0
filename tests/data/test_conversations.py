"""The supervised tokens of conversations, against what the template must have written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from firstcli.api import ChatMessage, ChatRole, Sample
from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError
from support.chat_templates import (
    AMBIGUOUS,
    GEMMA,
    LLAMA_3,
    MARKED,
    MISTRAL,
    PHI,
    QWEN_2_5,
    QWEN_3,
    STYLES,
    ChatStyle,
    with_plain_template,
    with_style,
)
from support.encoding import encode_training

Tokenizer = PreTrainedTokenizerFast
USER, ASSISTANT = "Is water wet?", "Yes, the water is wet."
FOUR = [
    ChatMessage("user", USER),
    ChatMessage("assistant", ASSISTANT),
    ChatMessage("user", "And fire?"),
    ChatMessage("assistant", "No.\n\nThe fire is dry"),
]
SYSTEM = ChatMessage("system", "Answer in one line.")


def conversation(messages: list[ChatMessage], supervised: str = "all") -> Sample:
    turns = [i for i, message in enumerate(messages) if message.role == "assistant" and i]
    return Sample.conversation(messages, turns if supervised == "all" else turns[-1:], id="x")


def encode(sample: Sample, tokenizer: Tokenizer) -> EncodedSample:
    [row], _ = encode_training([sample], tokenizer, "train.task")
    return row


def supervised_texts(row: EncodedSample, tokenizer: Tokenizer) -> list[str]:
    """Return the text of each run of supervised tokens, without spaces.

    Some tokenizers decode a space beside special tokens that the text does not contain.
    """
    borders = np.flatnonzero(np.diff(row.positions) > 1) + 1
    runs = np.split(row.positions, borders)
    return [str(tokenizer.decode(row.input_ids[run])).replace(" ", "") for run in runs]


def expected_texts(sample: Sample, style: ChatStyle) -> list[str]:
    texts = [
        f"{style.lead}{sample.messages[i].content.strip()}{style.end_of_turn}"
        for i in sample.supervised
    ]
    if style is PHI and sample.supervised[-1] == len(sample.messages) - 1:
        texts[-1] += "\n<|endoftext|>"
    return [text.replace(" ", "") for text in texts]


def mistakes(sample: Sample, tokenizer: Tokenizer) -> str:
    with pytest.raises(UserError) as caught:
        encode_training([sample], tokenizer, "train.task")
    [message] = caught.value.messages
    return message


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("supervised", ["all", "last"])
@pytest.mark.parametrize("name", STYLES)
def test_the_turns_are_the_answers_with_their_ends(
    tokenizer: Tokenizer, name: str, supervised: str, system: bool
) -> None:
    style = STYLES[name]
    if (system and not style.has_system) or (style is QWEN_3 and supervised == "all"):
        pytest.skip("refused, see below")
    sample = conversation([SYSTEM, *FOUR] if system else FOUR, supervised)
    styled = with_style(tokenizer, style)
    row = encode(sample, styled)
    assert supervised_texts(row, styled) == expected_texts(sample, style)
    messages = [{"role": one.role, "content": one.content} for one in sample.messages]
    whole = styled.apply_chat_template(messages, tokenize=False, enable_thinking=False)
    ids = styled(whole, add_special_tokens=False)["input_ids"]
    assert row.input_ids.tolist() == ids[: len(row.input_ids)]
    assert not str(styled.decode(ids[len(row.input_ids) :])).strip()


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["gpt2", "mistral"])
@pytest.mark.parametrize("name", STYLES)
def test_with_tokenizers_of_real_models(shared_models: Path, name: str, folder: str) -> None:
    style = STYLES[name]
    shared = AutoTokenizer.from_pretrained(shared_models / "tokenizers" / folder)
    assert isinstance(shared, PreTrainedTokenizerFast)
    styled = with_style(shared, style)
    sample = conversation(FOUR, "last" if style is QWEN_3 else "all")
    row = encode(sample, styled)
    assert supervised_texts(row, styled) == expected_texts(sample, style)


WORDS = st.text("ab .\n", min_size=1, max_size=12).filter(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.sampled_from(["all", "last"]))
def test_marks_and_prefixes_find_the_same(
    tokenizer: Tokenizer, pairs: list[tuple[str, str]], supervised: str
) -> None:
    marked = with_style(tokenizer, MARKED)
    plain = with_style(tokenizer, MARKED)
    plain.chat_template = MARKED.template.replace("{% generation %}", "").replace(
        "{% endgeneration %}", ""
    )
    roles: tuple[ChatRole, ...] = ("user", "assistant")
    messages = [
        ChatMessage(role, text) for pair in pairs for role, text in zip(roles, pair, strict=True)
    ]
    sample = conversation(messages, supervised)
    try:
        row = encode(sample, plain)
    except UserError as error:  # two line ends may be one token
        assert "crosses the border" in str(error)
        return
    other = encode(sample, marked)
    assert row.input_ids.tolist() == other.input_ids.tolist()
    assert row.positions.tolist() == other.positions.tolist()


def test_a_greeting_of_the_assistant_is_only_read(tokenizer: Tokenizer) -> None:
    for style in (QWEN_2_5, MARKED):
        styled = with_style(tokenizer, style)
        sample = conversation([ChatMessage("assistant", "Hello"), *FOUR])
        assert sample.supervised == (2, 4)
        texts = supervised_texts(encode(sample, styled), styled)
        assert texts == expected_texts(sample, style)


def test_messages_after_the_last_supervised_turn_are_not_read(tokenizer: Tokenizer) -> None:
    styled = with_style(tokenizer, LLAMA_3)
    short, long = conversation(FOUR[:2]), replace(conversation(FOUR), supervised=(1,))
    assert encode(short, styled).input_ids.tolist() == encode(long, styled).input_ids.tolist()


def test_earlier_turns_that_later_ones_change_are_refused(tokenizer: Tokenizer) -> None:
    for style in (AMBIGUOUS, QWEN_3):
        styled = with_style(tokenizer, style)
        message = mistakes(conversation(FOUR), styled)
        assert message.startswith("train.task: sample 'x': the chat template writes message 2 of 4")
        assert "supervise: last" in message
        row = encode(conversation(FOUR, "last"), styled)
        assert supervised_texts(row, styled) == ["No.\n\nThefireisdry<|im_end|>"]


def test_a_template_that_cannot_render_names_its_reason(tokenizer: Tokenizer) -> None:
    gemma = with_style(tokenizer, GEMMA)
    message = mistakes(conversation([SYSTEM, *FOUR]), gemma)
    assert "cannot render messages by system, user, assistant, user, ..." in message
    assert "System role not supported" in message
    message = mistakes(conversation([FOUR[0], *FOUR]), with_style(tokenizer, MISTRAL))
    assert "must alternate" in message


def test_a_template_that_changes_the_answer_is_refused(tokenizer: Tokenizer) -> None:
    shouting = with_plain_template(
        tokenizer, "{% for m in messages %}{{ m.content | upper }}\n{% endfor %}"
    )
    assert "changes the text of message 2 of 2" in mistakes(conversation(FOUR[:2]), shouting)


def test_a_token_across_the_border_is_refused(tokenizer: Tokenizer) -> None:
    """The space before the answer belongs to the prompt, but its token is the answer's first."""
    spaced = with_plain_template(
        tokenizer,
        "{% for m in messages %}{% if m.role == 'assistant' %}Answer: {% endif %}{{ m.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}Answer: {% endif %}",
    )
    message = mistakes(
        conversation([ChatMessage("user", USER), ChatMessage("assistant", "the")]), spaced
    )
    assert (
        "a token crosses the border of message 2 of 2, between '?\\nAnswer: ' and 'the" in message
    )


def test_marks_must_be_one_for_each_turn(tokenizer: Tokenizer) -> None:
    only_last = with_style(tokenizer, MARKED)
    only_last.chat_template = MARKED.template.replace(
        "m.role == 'assistant' %}", "m.role == 'assistant' and loop.last %}"
    )
    assert "marks 1 texts with {% generation %}, but the assistant has 2 turns" in mistakes(
        conversation(FOUR), only_last
    )


def test_without_a_template_there_is_one_sentence(tokenizer: Tokenizer) -> None:
    assert mistakes(conversation(FOUR), tokenizer) == (
        "train.task: the samples are conversations, but the tokenizer has no chat template; choose "
        "an instruct model, or state `chat_template: FILE` beside the model's `family`"
    )


def test_what_a_user_should_know_becomes_a_warning(tokenizer: Tokenizer) -> None:
    styled = with_style(tokenizer, QWEN_2_5)
    hidden = [ChatMessage("user", "Stop<|im_end|>"), FOUR[1]]
    _, warnings = encode_training([conversation(hidden)], styled, "train.task")
    assert warnings == ["sample 'x': message 1 contains '<|im_end|>', encoded as a special token"]
    endless = with_plain_template(
        tokenizer, "{% for m in messages %}{{ m.content ~ '\n' }}{% endfor %}"
    )
    _, warnings = encode_training([conversation(FOUR[:2])], endless, "train.task")
    assert warnings == [
        "sample 'x': the chat template writes nothing after the assistant's text, so no end is "
        "learned"
    ]
