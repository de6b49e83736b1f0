"""Chat templates written in the manner of well-known models, and tokenizers that have them.

None is a model's own template: each does what is special about its kind in a few lines.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

Tokenizer = PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class ChatStyle:
    """A chat template and the tokens that it needs."""

    template: str
    tokens: tuple[str, ...]
    """Special tokens that the template writes, which the tokenizer must know."""
    end_of_turn: str
    """The token that ends an assistant's turn; the model stops there."""
    bos: str | None = None
    """What the template writes in front of a conversation."""
    eos: str | None = None
    """The tokenizer's EOS; None: the end-of-turn token."""
    lead: str = ""
    """What the template writes between the generation prompt and the assistant's text."""
    has_system: bool = True
    """Whether a conversation may begin with a system message; otherwise the template raises."""


LLAMA_3 = ChatStyle(
    template=(
        "{{ bos_token }}"
        "{%- for m in messages %}"
        "{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' }}"
        "{{ m.content | trim }}{{ '<|eot_id|>' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
        "{%- endif %}"
    ),
    tokens=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    end_of_turn="<|eot_id|>",
    bos="<|begin_of_text|>",
)
"""The template writes BOS; a header names the role; contents are trimmed."""

QWEN_2_5 = ChatStyle(
    template=(
        "{% if messages[0].role != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
        "{% endif %}"
        "{% for m in messages %}"
        "{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    tokens=("<|im_start|>", "<|im_end|>"),
    end_of_turn="<|im_end|>",
)
"""ChatML with a system message of its own where the conversation has none."""

QWEN_3 = ChatStyle(
    template=(
        "{% set last = namespace(user=-1) %}"
        "{% for m in messages %}"
        "{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}"
        "{% endfor %}"
        "{% for m in messages %}"
        "{{ '<|im_start|>' ~ m.role ~ '\n' }}"
        "{% if m.role == 'assistant' %}"
        "{% set parts = m.content.split('</think>') %}"
        "{% if loop.index0 > last.user %}"
        "{% if parts | length > 1 %}{% set thought = parts[0].split('<think>')[-1] | trim %}"
        "{% else %}{% set thought = '' %}{% endif %}"
        "{{ '<think>\n' ~ thought ~ '\n</think>\n\n' }}"
        "{% endif %}"
        "{{ parts[-1].lstrip('\n') }}"
        "{% else %}{{ m.content }}{% endif %}"
        "{{ '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and not enable_thinking %}"
        "{{ '<think>\n\n</think>\n\n' }}"
        "{% endif %}"
        "{% endif %}"
    ),
    tokens=("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    end_of_turn="<|im_end|>",
)
"""ChatML with thoughts: `enable_thinking=False` writes an empty one into the generation prompt.

Only turns after the last user message show a thought, so the template rewrites earlier turns.
"""

MISTRAL = ChatStyle(
    template=(
        "{{ bos_token }}"
        "{% set start = 1 if messages[0].role == 'system' else 0 %}"
        "{% for m in messages[start:] %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('the roles user and assistant must alternate') }}"
        "{% endif %}"
        "{% if m.role == 'user' %}"
        "{{ '[INST] ' }}"
        "{% if loop.first and start %}{{ messages[0].content ~ '\n\n' }}{% endif %}"
        "{{ m.content ~ '[/INST]' }}"
        "{% else %}"
        "{{ ' ' ~ (m.content | trim) ~ eos_token }}"
        "{% endif %}"
        "{% endfor %}"
    ),
    tokens=("<s>", "</s>", "[INST]", "[/INST]"),
    end_of_turn="</s>",
    bos="<s>",
    lead=" ",
)
"""The system message joins the first user message; there is no generation prompt, and the space
before an answer belongs to it."""

GEMMA = ChatStyle(
    template=(
        "{{ bos_token }}"
        "{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}"
        "{% endif %}"
        "{% for m in messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('the roles user and assistant must alternate') }}"
        "{% endif %}"
        "{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' ~ role ~ '\n' ~ (m.content | trim) ~ '<end_of_turn>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    tokens=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    end_of_turn="<end_of_turn>",
    bos="<bos>",
    eos="<eos>",
    has_system=False,
)
"""The assistant is called `model`, a system message is refused, and EOS does not end a turn."""

PHI = ChatStyle(
    template=(
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
    end_of_turn="<|end|>",
    eos="<|endoftext|>",
)
"""EOS follows the last turn of a conversation, whose end-of-turn token is another one."""

MARKED = ChatStyle(
    template=(
        "{% for m in messages %}"
        "{{ '<|im_start|>' ~ m.role ~ '\n' }}"
        "{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content ~ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ m.content ~ '<|im_end|>\n' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    tokens=("<|im_start|>", "<|im_end|>"),
    end_of_turn="<|im_end|>",
)
"""ChatML that marks what the assistant generates; without the marks it renders the same text."""

AMBIGUOUS = ChatStyle(
    template=(
        "{% for m in messages %}"
        "{{ '<|im_start|>' ~ m.role ~ '\n' }}"
        "{% if loop.last or m.role != 'assistant' %}{{ m.content }}"
        "{% else %}{{ m.content[:8] ~ '...' }}{% endif %}"
        "{{ '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    tokens=("<|im_start|>", "<|im_end|>"),
    end_of_turn="<|im_end|>",
)
"""ChatML that shortens the earlier turns of the assistant: later turns change earlier ones."""

STYLES: dict[str, ChatStyle] = {
    "llama 3": LLAMA_3,
    "qwen 2.5": QWEN_2_5,
    "qwen 3": QWEN_3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "phi": PHI,
    "marked": MARKED,
}
"""The styles in which the supervised turns are unambiguous, except earlier turns of Qwen 3."""


def with_style(tokenizer: Tokenizer, style: ChatStyle) -> Tokenizer:
    """Return a copy of a tokenizer with a style's template, special tokens, BOS and EOS.

    The vocabulary grows by the tokens that it lacks, so a model needs a larger embedding.
    """
    copy = deepcopy(tokenizer)
    tokens: list[Any] = [AddedToken(text, special=True, normalized=False) for text in style.tokens]
    copy.add_tokens(tokens, special_tokens=True)
    if style.bos:
        copy.bos_token = style.bos
    copy.eos_token = style.eos or style.end_of_turn
    copy.chat_template = style.template
    return copy


def with_plain_template(tokenizer: Tokenizer, template: str = QWEN_2_5.template) -> Tokenizer:
    """Return a copy of a tokenizer with a template whose marks stay ordinary text.

    The vocabulary does not grow, so the copy suits the model of the original.
    """
    copy = deepcopy(tokenizer)
    copy.chat_template = template
    return copy
