"""A sample that a chat template renders has the tokens that the template gives the conversation."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from firstcli.api import Sample
from firstcli.data import joint
from firstcli.data.chat import ChatFormat
from firstcli.data.encoding import Encoding, each_encoded, encode_questions
from firstcli.data.joint import JointEncoder
from firstcli.errors import UserError
from support.chat_templates import (
    GEMMA,
    LLAMA_3,
    QWEN_2_5,
    QWEN_3,
    STYLES,
    ChatStyle,
    with_plain_template,
    with_style,
)

Tokenizer = PreTrainedTokenizerFast
QUESTION = "Q: What is water?\n(a) wet\n(b) dry\nA:"
ANSWERS = (" wet", " dry", " the fire")

styles = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())


def conversation(tokenizer: Any, answer: str, system: str | None = None) -> list[int]:
    """Return the tokens that transformers gives a whole conversation."""
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    encoded = tokenizer.apply_chat_template(messages, tokenize=True, enable_thinking=False)
    ids: list[int] = encoded["input_ids"]
    return ids


def assert_as_the_template_says(tokenizer: Any, style: ChatStyle, system: str | None) -> None:
    chat = ChatFormat(tokenizer, system)
    sample = Sample.question(QUESTION, ANSWERS, 1)
    (found,) = JointEncoder(tokenizer, chat=chat)([sample])
    assert chat.end == style.end_of_turn
    messages = [{"role": "user", "content": QUESTION}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    assert (
        found.prompt
        == tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, enable_thinking=False
        )["input_ids"]
    )
    for answer, (ids, length) in zip(ANSWERS, found.responses, strict=True):
        expected = conversation(tokenizer, answer.strip(), system)
        assert expected[: len(ids)] == ids
        # What may follow the end is a line end, or the EOS of the whole conversation.
        assert "".join(tokenizer.batch_decode(expected[len(ids) :])).strip() in ("", style.eos)
        assert ids[length:] == [tokenizer.convert_tokens_to_ids(style.end_of_turn)]
        assert ids[: len(found.prompt)] == found.prompt


@styles
def test_all_styles_give_the_tokens_of_the_conversation(
    tokenizer: Tokenizer, style: ChatStyle
) -> None:
    assert_as_the_template_says(with_style(tokenizer, style), style, None)


@styles
def test_a_system_message_is_part_of_the_prompt_or_refused(
    byte_tokenizer: Tokenizer, style: ChatStyle
) -> None:
    tokenizer = with_style(byte_tokenizer, style)
    if style.has_system:
        assert_as_the_template_says(tokenizer, style, "Be brief.")
    else:
        with pytest.raises(UserError, match=r"of system and user \(System role not supported\)"):
            ChatFormat(tokenizer, "Be brief.")


@pytest.mark.shared
@styles
@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_real_tokenizers(shared_models: Path, name: str, style: ChatStyle) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(shared_models / "tokenizers" / name)
    tokenizer = with_style(tokenizer, style)
    chat = ChatFormat(tokenizer)
    if name == "gpt2" and chat.prompt("a").endswith("\n\n"):
        # GPT-2 has a token for two line ends, but not before a word.
        with pytest.raises(UserError, match="the chat template ends the prompt in the middle of a"):
            encode_questions(
                [Sample.question(QUESTION, ANSWERS, 1)], Encoding(tokenizer, "here", chat=chat)
            )
    else:
        assert_as_the_template_says(tokenizer, style, None)


@styles
def test_samples_have_supervised_responses_and_an_answer_position(
    tokenizer: Tokenizer, style: ChatStyle
) -> None:
    tokenizer = with_style(tokenizer, style)
    encoding = Encoding(tokenizer, "train.task", chat=ChatFormat(tokenizer))
    sample = Sample.question(QUESTION, ANSWERS, 1, id="q")
    (row,) = each_encoded([sample], encoding)
    (question,) = encode_questions([sample], encoding)
    (alone,) = JointEncoder(tokenizer, chat=encoding.chat)([sample])
    assert row.start == len(alone.prompt)
    assert row.targets.tolist() == alone.responses[1][0][row.start :]
    assert row.answer_position == len(question.input_ids)
    assert row.input_ids[row.answer_position] == question.candidate_ids[1]
    assert encoding.warnings == []


def test_many_candidates_share_tokens(byte_tokenizer: Tokenizer) -> None:
    tokenizer = with_style(byte_tokenizer, LLAMA_3)
    candidates = tuple(f" {number} wet" for number in range(joint.MANY + 4))
    samples = [Sample.question(f"{QUESTION} {i}", candidates, i % 30) for i in range(40)]
    found = list(JointEncoder(tokenizer, chat=ChatFormat(tokenizer))(samples))
    assert len({id(each.ends) for each in found}) == 1 and found[0].ends is not None
    for sample, each in zip(samples, found, strict=True):
        for candidate, (ids, _) in zip(candidates, each.responses, strict=True):
            messages = [
                {"role": "user", "content": sample.prompt},
                {"role": "assistant", "content": candidate.strip()},
            ]
            encoded: Any = tokenizer.apply_chat_template(messages, tokenize=True)
            assert encoded["input_ids"] == ids


def test_continuations_are_those_of_the_encoded_sample(byte_tokenizer: Tokenizer) -> None:
    tokenizer = with_style(byte_tokenizer, QWEN_2_5)
    encoder = JointEncoder(tokenizer, chat=ChatFormat(tokenizer))
    (found,) = encoder([Sample.question(QUESTION, ANSWERS, 0)])
    expected = [tuple(ids[len(found.prompt) :]) for ids, _ in found.responses]
    assert encoder.continuations(QUESTION, ANSWERS) == expected


def test_bos_is_written_once(piece_tokenizer: Tokenizer) -> None:
    tokenizer = with_style(piece_tokenizer, LLAMA_3)
    (found,) = JointEncoder(tokenizer, chat=ChatFormat(tokenizer))([Sample(QUESTION, "wet")])
    begins: Sequence[str] = tokenizer.convert_ids_to_tokens(found.prompt[:2])
    assert begins == ["<|begin_of_text|>", "<|start_header_id|>"]


@pytest.mark.parametrize(
    ("template", "response", "end"),
    [
        ("{{ m.content }}", "wet", "</s>"),
        ("{{ m.content ~ '\n' }}", "wet", "</s>"),
        ("{{ ' ' ~ (m.content | trim) ~ ' </s>' }}", " wet ", "</s>"),
        ("{{ ' ' ~ m.content ~ '<unk></s>' }}", " wet", "<unk>"),
    ],
)
def test_a_template_of_ones_own(
    piece_tokenizer: Tokenizer, template: str, response: str, end: str
) -> None:
    """Without a special token after the answer, EOS ends it; text before that token is kept."""
    own = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' ~ m.content ~ '\nModel:' }}"
        f"{{% else %}}{template}{{% endif %}}{{% endfor %}}"
    )
    chat = ChatFormat(with_plain_template(piece_tokenizer, own))
    assert chat.prompt("hello") == "User: hello\nModel:"
    assert chat.response(" wet ") == response
    assert chat.end == end


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        ("nothing", None, "leaves out the user's message; give a different template"),
        ("{{ messages[-1].content }}", "Be.", "leaves out the system message; remove `system`"),
        ("{{ messages[0].content }}", None, "leaves out the assistant's message; give"),
        ("{{ messages[0].content.nothing.more }}", None, "cannot render a conversation of user"),
        ("{% if %}", None, "cannot render a conversation of user .*; give a different template"),
    ],
)
def test_a_template_that_does_not_suit_is_refused(
    byte_tokenizer: Tokenizer, template: str, system: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ChatFormat(with_plain_template(byte_tokenizer, template), system)


def test_a_refused_system_message_has_its_own_advice(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="remove `system`, or move its text into the prompt"):
        ChatFormat(with_style(byte_tokenizer, GEMMA), "Be brief.")


def test_prompts_do_not_depend_on_the_day(byte_tokenizer: Tokenizer) -> None:
    template = "{{ strftime_now('%d %b %Y') }} {% for m in messages %}{{ m.content }}{% endfor %}"
    chat = ChatFormat(with_plain_template(byte_tokenizer, template))
    assert chat.prompt("hello") == "26 Jul 2024 hello"


def test_special_tokens_in_a_message_are_named(byte_tokenizer: Tokenizer) -> None:
    tokenizer = with_style(byte_tokenizer, QWEN_3)
    encoding = Encoding(tokenizer, "train.task", chat=ChatFormat(tokenizer))
    samples = [Sample("hello", "wet", id="a"), Sample("<|im_end|>", "wet<|im_end|>", id="b")]
    list(each_encoded(samples, encoding))
    in_prompt, in_response = encoding.warnings
    assert in_prompt.startswith("sample 'b': the prompt contains special tokens besides those of")
    assert "'<|im_end|>', encoded as special tokens" in in_response
    assert "another EOS follows" in in_response


def test_marks_that_the_tokenizer_does_not_know_are_named(byte_tokenizer: Tokenizer) -> None:
    tokenizer = with_plain_template(byte_tokenizer)
    encoding = Encoding(tokenizer, "train.task", chat=ChatFormat(tokenizer))
    list(each_encoded([Sample("hello", "wet", id="a")], encoding))
    (warning,) = encoding.warnings
    assert "'<|im_start|>', which is no token of this tokenizer" in warning


def test_what_changes_rendered_texts_changes_the_identity(byte_tokenizer: Tokenizer) -> None:
    tokenizer = with_style(byte_tokenizer, QWEN_2_5)
    other = deepcopy(tokenizer)
    other.chat_template += " "
    formats = [ChatFormat(tokenizer), ChatFormat(tokenizer, ""), ChatFormat(other)]
    assert len({each.identity for each in formats}) == 3
    assert ChatFormat(deepcopy(tokenizer)).identity == formats[0].identity
