"""Supervised tokens, answer positions, and samples that cannot be encoded."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from firstcli.api import Sample
from firstcli.data import joint
from firstcli.data.encoding import (
    EncodedQuestion,
    EncodedSample,
    Encoding,
    each_encoded,
    encode_questions,
)
from firstcli.errors import UserError
from firstcli.tasks.codes import chosen_codes
from support.encoding import encode_training

Tokenizer = PreTrainedTokenizerFast


def encode(prompt: str, response: str, tokenizer: Tokenizer) -> EncodedSample:
    [row], _ = encode_training([Sample(prompt, response, id="x")], tokenizer, "train")
    return row


def question(prompt: str, *candidates: str, answer: int = 0) -> Sample:
    return Sample.question(prompt, candidates, answer, id="q1")


def encode_question(prompt: str, *candidates: str, tokenizer: Tokenizer) -> EncodedQuestion:
    [row] = encode_questions([question(prompt, *candidates)], Encoding(tokenizer, "test"))
    return row


def mistakes(samples: list[Sample], tokenizer: Tokenizer) -> list[str]:
    """Return what is wrong with samples for training, then for evaluation: one message each."""
    messages: list[str] = []
    for encode in (
        lambda: encode_training(samples, tokenizer, "train"),
        lambda: encode_questions(samples, Encoding(tokenizer, "train")),
    ):
        with pytest.raises(UserError) as caught:
            encode()
        messages += caught.value.messages
    assert len(messages) == 2
    return messages


def pieces(tokenizer: Tokenizer, ids: Any) -> list[str]:
    return [str(tokenizer.convert_ids_to_tokens(int(i))) for i in ids]


def with_frame(tokenizer: Tokenizer, frame: str) -> Tokenizer:
    """Return a copy that adds special tokens around every text, such as `<s> $A </s>`."""
    framed = deepcopy(tokenizer)
    names = [name for name in frame.split() if name != "$A"]
    framed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        frame, special_tokens=[(name, framed.convert_tokens_to_ids(name)) for name in names]
    )
    return framed


# Supervised tokens.


def test_prompt_response_and_eos_are_one_text(tokenizer: Tokenizer) -> None:
    row = encode("Answer:", " yes, the water is wet.", tokenizer)
    whole = tokenizer("Answer: yes, the water is wet.")["input_ids"]
    assert row.input_ids.tolist() == [*whole, tokenizer.eos_token_id]
    assert row.input_ids[: row.start].tolist() == tokenizer("Answer:")["input_ids"]
    assert row.targets.tolist() == row.input_ids[row.start :].tolist()
    assert str(tokenizer.decode(row.targets[:-1])).strip() == "yes, the water is wet."
    assert row.answer_position is None


texts = st.text(
    st.one_of(
        st.sampled_from("aeinrstw ,.()\n\t:"),
        st.characters(codec="utf-8", exclude_characters="\0"),
        st.sampled_from("😀🏳️‍🌈é日本语ßİ\u0301\u200d"),
    ),
    max_size=25,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=texts, response=texts.filter(bool))
def test_supervised_tokens_are_those_that_reach_into_the_response(
    tokenizer: Tokenizer, prompt: str, response: str
) -> None:
    row = encode(prompt, response, tokenizer)
    joint = tokenizer(prompt + response, return_offsets_mapping=True)
    assert row.input_ids.tolist() == [*joint["input_ids"], tokenizer.eos_token_id]
    reaching = [i for i, (_, end) in enumerate(joint["offset_mapping"]) if end > len(prompt)]
    supervised = list(range(row.start, len(row.input_ids) - 1))
    assert supervised == [i for i in reaching if i > 0]  # the first token has no context
    assert row.start >= 1
    # If no token crosses the border, the supervised tokens decode to exactly the response.
    alone = tokenizer(prompt)["input_ids"]
    if alone and row.input_ids[: len(alone)].tolist() == alone and prompt:
        assert row.start == len(alone)
        assert (
            _decoded_bytes(tokenizer, row.input_ids[:-1])
            == _decoded_bytes(tokenizer, alone) + response.encode()
        )


def _decoded_bytes(tokenizer: Tokenizer, ids: Any) -> bytes:
    """Decode to bytes, because a token may end within a character."""
    names = [name for name in pieces(tokenizer, ids) if name != tokenizer.bos_token]
    if tokenizer.bos_token is None:
        alphabet = _byte_alphabet()
        return bytes(alphabet[character] for name in names for character in name)
    raw = b"".join(
        bytes([int(name[3:5], 16)]) if len(name) == 6 and name.startswith("<0x") else name.encode()
        for name in names
    )
    return raw.replace("▁".encode(), b" ").removeprefix(b" ")


def _byte_alphabet() -> dict[str, int]:
    """Map each character of a byte-level vocabulary to its byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + n): byte for n, byte in enumerate(others)}


@pytest.mark.parametrize("response", ["\nyes", "\n\n", "😀", " ", "日本", "e\u0301"])
def test_unusual_responses(tokenizer: Tokenizer, response: str) -> None:
    row = encode("Answer:", response, tokenizer)
    assert row.input_ids[: row.start].tolist() == tokenizer("Answer:")["input_ids"]
    assert row.targets[-1] == tokenizer.eos_token_id and len(row.targets) >= 2


def test_bytes_of_one_character_are_all_supervised(tokenizer: Tokenizer) -> None:
    """The four bytes of an emoji are four tokens that cover the same character."""
    row = encode("Answer:", "😀", tokenizer)
    assert len(row.targets) == 5


def test_an_empty_prompt_starts_after_the_first_token(tokenizer: Tokenizer) -> None:
    row = encode("", "The water.", tokenizer)
    assert row.start == 1


def test_an_empty_response_supervises_only_eos(tokenizer: Tokenizer) -> None:
    row = encode("Answer:", "", tokenizer)
    assert row.targets.tolist() == [tokenizer.eos_token_id]


# Special tokens, and tokenizers without offsets.


@pytest.mark.parametrize("prompt", ["Answer:", ""])
def test_special_tokens_around_a_text(byte_tokenizer: Tokenizer, prompt: str) -> None:
    """BOS stays; an EOS that the tokenizer adds is neither doubled nor part of the prompt."""
    plain = encode(prompt, " yes", byte_tokenizer).input_ids.tolist()
    closed = encode(prompt, " yes", with_frame(byte_tokenizer, "$A </s>"))
    assert closed.input_ids.tolist() == plain
    framed = encode(prompt, " yes", with_frame(byte_tokenizer, "<pad> $A </s>"))
    assert framed.input_ids.tolist() == [byte_tokenizer.pad_token_id, *plain]
    alone = byte_tokenizer(prompt)["input_ids"]
    assert framed.start == len(alone) + 1
    encoded = encode_question(
        "Answer:", " yes", " no", tokenizer=with_frame(byte_tokenizer, "<pad> $A </s>")
    )
    assert encoded.input_ids[0] == byte_tokenizer.pad_token_id
    assert byte_tokenizer.eos_token_id not in encoded.input_ids


def test_a_tokenizer_without_eos(byte_tokenizer: Tokenizer) -> None:
    endless = deepcopy(byte_tokenizer)
    endless.eos_token = None
    row = encode("Answer:", " yes", endless)
    assert row.input_ids.tolist() == byte_tokenizer("Answer: yes")["input_ids"]


def test_a_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(UserError, match=r"ByT5Tokenizer provides no character offsets"):
        encode_training([Sample("a", "b", id="x")], ByT5Tokenizer(), "train")


def test_special_tokens_in_a_prompt_are_encoded_as_such(tokenizer: Tokenizer) -> None:
    """A chat template's markers have the same meaning as when the model is served."""
    sample = Sample("Ask.</s>Answer:", " Yes.", id="chat")
    [row, _], [warning] = encode_training([sample, replace(sample, id="b")], tokenizer, "train")
    assert row.input_ids.tolist().count(tokenizer.eos_token_id) == 2
    assert row.input_ids[: row.start].tolist() == tokenizer(sample.prompt)["input_ids"]
    assert warning.startswith("sample 'chat' (and 1 other samples): the prompt")
    assert "contains '</s>', encoded as special tokens, as in a rendered chat" in warning
    assert "'</s>'" in warning.partition("its tokens are")[2]


@pytest.mark.parametrize(
    ("response", "end"),
    [
        (" Yes, </s> is.", "and the student learns to stop there"),
        (" Yes.</s>", "and another EOS follows; remove it from the responses"),
    ],
)
def test_special_tokens_in_a_response_cause_a_warning(
    tokenizer: Tokenizer, response: str, end: str
) -> None:
    """A `</s>` in the data would teach the student to stop in the middle."""
    sample = Sample("Is it a tag?", response, id="html")
    _, [warning] = encode_training([sample], tokenizer, "train")
    assert warning.startswith("sample 'html': the response contains '</s>'")
    assert warning.endswith(end)
    candidate = Sample.question("Is it a tag?", [" no", response], 0, id="html")
    encoding = Encoding(tokenizer, "test")
    encode_questions([candidate], encoding)
    assert encoding.warnings == [warning]


def test_a_prompt_that_begins_with_the_bos_that_the_tokenizer_adds(
    piece_tokenizer: Tokenizer,
) -> None:
    sample = question("<s>Answer:", " yes", " no")
    for message in mistakes([sample], piece_tokenizer):
        assert "begins with '<s>', which the tokenizer adds" in message
        assert "its tokens are ['<s>', '<s>', " in message and "doubled_bos: drop" in message
    plain, dropped = (
        next(each_encoded([replace(sample, prompt=prompt)], encoding))
        for prompt, encoding in (
            ("Answer:", Encoding(piece_tokenizer, "train")),
            ("<s>Answer:", Encoding(piece_tokenizer, "train", drop_doubled_bos=True)),
        )
    )
    assert pieces(piece_tokenizer, dropped.input_ids)[:2] == ["<s>", "▁Answer:"]
    assert dropped.input_ids.tolist() == plain.input_ids.tolist()
    assert (dropped.start, dropped.answer_position) == (plain.start, plain.answer_position)


def test_a_bos_that_the_tokenizer_does_not_add_is_no_mistake(byte_tokenizer: Tokenizer) -> None:
    encode("<pad>Answer:", " yes", byte_tokenizer)


def test_markers_of_a_chat_template_that_the_tokenizer_does_not_know(
    byte_tokenizer: Tokenizer,
) -> None:
    sample = Sample("<|im_start|>user\nIs it?<|im_end|>\n", "Yes", id="x")
    _, [warning] = encode_training([sample], byte_tokenizer, "train")
    assert "'<|im_start|>', which is no token of this tokenizer but is split into ['<'" in warning
    known = deepcopy(byte_tokenizer)
    known.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    _, [warning] = encode_training([sample], known, "train")
    assert "contains '<|im_start|>', '<|im_end|>', encoded as special tokens" in warning


# The answer position.


def test_letters_differ_at_the_border(byte_tokenizer: Tokenizer) -> None:
    prompt = "A: The answer is ("
    encoded = encode_question(prompt, "a).", "b).", "c).", tokenizer=byte_tokenizer)
    assert encoded.input_ids.tolist() == byte_tokenizer(prompt)["input_ids"]
    assert pieces(byte_tokenizer, encoded.candidate_ids) == ["a", "b", "c"]
    rows, _ = encode_training(
        [question(prompt, "a).", "b).", "c).", answer=1)], byte_tokenizer, "train"
    )
    assert rows[0].answer_position == rows[0].start == len(encoded.input_ids)
    assert pieces(byte_tokenizer, rows[0].targets[:1]) == ["b"]


def test_a_common_prefix_moves_the_answer_position(tokenizer: Tokenizer) -> None:
    """The answer position is the first position at which the candidates differ."""
    encoded = encode_question("Answer:", " yes", " no", tokenizer=tokenizer)
    alone = tokenizer("Answer:")["input_ids"]
    assert encoded.input_ids[: len(alone)].tolist() == alone
    assert len(encoded.input_ids) == len(alone) + 1  # the space
    [row], _ = encode_training([question("Answer:", " yes", " no")], tokenizer, "train")
    assert row.answer_position == len(alone) + 1 and row.start == len(alone)
    assert row.input_ids[row.answer_position] == encoded.candidate_ids[0]
    assert row.input_ids[: row.answer_position].tolist() == encoded.input_ids.tolist()


def test_a_candidate_that_is_a_prefix_of_another(
    byte_tokenizer: Tokenizer,
) -> None:
    encoded = encode_question("Answer:", " yes", " yes, wet", tokenizer=byte_tokenizer)
    assert pieces(byte_tokenizer, encoded.candidate_ids) == ["</s>", ","]


def test_training_and_evaluation_agree_for_every_answer(tokenizer: Tokenizer) -> None:
    candidates = (" yes", " no", " The fire")
    for answer in range(3):
        sample = Sample.question("Answer:", candidates, answer, id="q")
        [row], _ = encode_training([sample], tokenizer, "train")
        [encoded] = encode_questions([sample], Encoding(tokenizer, "test"))
        assert row.answer_position is not None
        assert row.input_ids[row.answer_position] == encoded.candidate_ids[answer]
        assert encoded.answer == answer
        assert len(encoded.input_ids) == row.answer_position


# What cannot be encoded.


def test_many_candidates_give_the_same_questions_as_few(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokens_of(texts: Sequence[str]) -> list[list[tuple[int, ...] | None]]:
        encoder = joint.JointEncoder(tokenizer)
        return [encoder.continuations("the water:", [f" {text}" for text in texts])]

    candidates = [f" {code}" for code in chosen_codes(5, tokens_of)]
    samples = [
        Sample.question(f"{i} {text} is the water:", candidates, i, id=str(i))
        for i, text in enumerate(("wet", "dry", "wet"))
    ]
    monkeypatch.setattr(joint, "MANY", 3)
    shared = encode_questions(samples, Encoding(tokenizer, "here"))
    trained = encode_training(samples, tokenizer, "here")
    monkeypatch.setattr(joint, "MANY", 1000)
    assert str(shared) == str(encode_questions(samples, Encoding(tokenizer, "here")))
    assert str(trained) == str(encode_training(samples, tokenizer, "here"))


def test_candidates_that_share_a_token_are_named(byte_tokenizer: Tokenizer) -> None:
    sample = question("Answer:", " yesx", " yesy", " no")
    for message in mistakes([sample], byte_tokenizer):
        assert (
            "train: sample 'q1'" in message and "' yesx', ' yesy' share the token 'yes'" in message
        )


def test_a_crossed_border_is_an_error_for_questions(byte_tokenizer: Tokenizer) -> None:
    """`is ` alone ends in a space; followed by `(a)`, space and bracket are one token."""
    sample = question("The answer is ", "(a", "(b")
    for message in mistakes([sample], byte_tokenizer):
        assert "'q1'" in message and "['Ġ']" in message and "['Ġ(', 'a']" in message
        assert (
            "move the border, for example from 'nswer is ' + '(a' to 'nswer is' + ' (a'" in message
        )


def test_every_candidate_must_respect_the_border(byte_tokenizer: Tokenizer) -> None:
    """Also the wrong candidates, although only the correct one is trained on."""
    sample = question("The answer is ", "yes", "(b")
    with pytest.raises(UserError, match=r"crosses the border.*'Ġ\(', 'b'.*\+ ' \(b'"):
        encode_questions([sample], Encoding(byte_tokenizer, "test"))


def test_a_crossed_border_is_a_counted_warning_for_instructions(byte_tokenizer: Tokenizer) -> None:
    samples = [
        Sample("The answer is ", "(a)", id="crossed"),
        Sample("The answer is", " (a)", id="fine"),
    ]
    rows, [warning] = encode_training(samples, byte_tokenizer, "train")
    assert warning.startswith("sample 'crossed': a token crosses the border")
    assert [row.id for row in rows] == ["crossed", "fine"]
    assert pieces(byte_tokenizer, rows[0].targets) == ["Ġ(", "a", ")", "</s>"]


def test_a_question_without_any_context_is_refused(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="no token precedes the candidates"):
        encode_question("", "yes", "no", tokenizer=byte_tokenizer)


def test_many_samples_with_one_mistake_are_one_message(byte_tokenizer: Tokenizer) -> None:
    samples = [
        Sample.question("Answer:", [" yesx", " yesy", " no"], 0, id=str(number))
        for number in range(5)
    ]
    for message in mistakes(samples, byte_tokenizer):
        assert message.startswith("train: sample '0' (and 4 other samples): the candidates")


def test_advice_at_the_border_has_been_tried(byte_tokenizer: Tokenizer) -> None:
    """A space would not help a tokenizer that has learned `: yes` as one token; a new line does."""
    joined = deepcopy(byte_tokenizer)
    joined.add_tokens([": yes"])
    [message, _] = mistakes([question("Answer:", " yes", " no")], joined)
    assert "from 'Answer:' + ' yes' to 'Answer:\\n' + 'yes'" in message
    joined.add_tokens([":\nyes"])
    [message, _] = mistakes([question("Answer:", " yes", " no")], joined)
    assert "choose a different one" in message and "move" not in message


def test_candidates_that_the_tokenizer_does_not_know(byte_tokenizer: Tokenizer) -> None:
    unknown = deepcopy(byte_tokenizer)
    unknown.unk_token = "yes"
    [message, _] = mistakes([question("Answer:", " yesx", " yesy", " no")], unknown)
    assert "the tokenizer does not know them" in message and "letters" not in message


def test_evaluation_needs_candidates(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="sample 'x' has no candidates"):
        encode_questions([Sample("a", "b", id="x")], Encoding(byte_tokenizer, "test"))


def test_a_question_without_a_correct_answer_can_be_evaluated(byte_tokenizer: Tokenizer) -> None:
    answered = Sample.question("Q: A:", [" yes", " no"], 1, id="x")
    without = Sample.question("Q: A:", [" yes", " no"], None, id="y")
    assert (without.response, without.answer) == ("", None)
    [expected] = encode_questions([answered], Encoding(byte_tokenizer, "test"))
    [found] = encode_questions([without], Encoding(byte_tokenizer, "test"))
    assert found.answer is None
    assert found.candidate_ids == expected.candidate_ids
    assert found.input_ids.tolist() == expected.input_ids.tolist()
    with pytest.raises(UserError, match=r"1 of 2 questions.* 'y', have no right answer"):
        encode_questions([answered, without], Encoding(byte_tokenizer, "test"))


@pytest.mark.parametrize(
    "candidates",
    [(" yes", " no"), (" (a", " (b"), (" it is yes", " it is no"), ("x", "xy")],
)
def test_an_unlabelled_question_ends_with_its_answer_position(
    tokenizer: Tokenizer, candidates: tuple[str, ...]
) -> None:
    """The tokens before the answer position are those of the question with any label."""
    prompt = "Q: What is water?\nA:" if candidates[0] != "x" else "Q:\n"
    labelled = [Sample.question(prompt, candidates, answer, id=f"{answer}") for answer in (0, 1)]
    unlabelled = Sample.question(prompt, candidates, None, id="u")
    rows, _ = encode_training([*labelled, unlabelled], tokenizer, "train")
    found = rows[-1]
    assert found.answer_position == found.start == len(found.input_ids) - 1
    assert len(found.targets) == 1
    for row in rows[:-1]:
        assert row.answer_position == found.answer_position
        assert row.input_ids[: found.start].tolist() == found.input_ids[: found.start].tolist()


def test_mistakes_in_unlabelled_questions_are_named(byte_tokenizer: Tokenizer) -> None:
    shared = Sample.question("Q: A:", [" yes", " no", " not"], None, id="u")
    with pytest.raises(UserError, match=r"train: sample 'u': .* share the token"):
        encode_training([shared], byte_tokenizer, "train")


# Real tokenizers.


@pytest.fixture(params=["gpt2", "mistral"])
def real_tokenizer(request: pytest.FixtureRequest, shared_models: Path) -> Tokenizer:
    folder = shared_models / "tokenizers" / request.param
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


@pytest.mark.shared
def test_real_tokenizers_use_the_bare_letter(real_tokenizer: Tokenizer) -> None:
    prompt = "Q: Where?\nAnswer Choices:\n(a) here\n(b) there\nA: The answer is ("
    encoded = encode_question(prompt, "a).", "b).", tokenizer=real_tokenizer)
    assert pieces(real_tokenizer, encoded.candidate_ids) == ["a", "b"]
    [row], _ = encode_training([question(prompt, "a).", "b).")], real_tokenizer, "train")
    assert pieces(real_tokenizer, row.targets) == ["a", ").", real_tokenizer.eos_token]


@pytest.mark.shared
def test_real_tokenizers_merge_over_a_space(real_tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"crosses the border.*to 'Answer:' \+ ' yes'"):
        encode_question("Answer: ", "yes", "no", tokenizer=real_tokenizer)
    encoded = encode_question("Answer:", " yes", " no", tokenizer=real_tokenizer)
    assert [piece[1:] for piece in pieces(real_tokenizer, encoded.candidate_ids)] == ["yes", "no"]
    rows, [warning] = encode_training([Sample("Answer: ", "yes", id="x")], real_tokenizer, "train")
    assert "crosses the border" in warning
    assert pieces(real_tokenizer, rows[0].targets)[0][1:] == "yes"


@pytest.mark.shared
def test_boolq_s_answer_follows_a_newline(real_tokenizer: Tokenizer) -> None:
    encoded = encode_question(
        "Input:\nSome text\n\n### Response:\n", "Yes", "No", tokenizer=real_tokenizer
    )
    assert pieces(real_tokenizer, encoded.candidate_ids) == ["Yes", "No"]
