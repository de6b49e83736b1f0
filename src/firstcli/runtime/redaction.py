"""Remove what must not be published: secrets from everything, folders from pages and cards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

REDACTED = "<redacted>"

_NAME = re.compile(
    r"""(?:^|[._])(?:
        (?:auth|access|api|bearer|hf|hub|login|private|refresh|secret|wandb|comet)_?(?:token|key)
        |token|password|passwd|passphrase|secret|credentials?
    )s?$""",
    re.VERBOSE,
)
_TOKENIZER_TERM = re.compile(r"(bos|eos|pad|unk|sep|cls|mask|special|added|image|audio)_tokens?$")
_VALUE = re.compile(
    r"""
    \bhf_[A-Za-z0-9]{16,}                        # Hugging Face
    |\bgh[opsru]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}
    |\bglpat-[\w-]{16,}
    |\bsk-[A-Za-z0-9_-]{20,}                     # OpenAI and others
    |\bxox[abeprs]-[A-Za-z0-9-]{10,}             # Slack
    |\b(?:AKIA|ASIA)[A-Z0-9]{16}\b               # Amazon
    |\bAIza[\w-]{30,}                            # Google
    |\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}     # JSON web tokens
    |(?<=://)[^/\s:@]+:[^/\s@]+(?=@)             # user and password in a URL
    """,
    re.VERBOSE,
)


def is_secret_name(name: str) -> bool:
    """Return whether a key of this name is meant for a secret."""
    lower = name.lower().replace("-", "_")
    return bool(_NAME.search(lower)) and not _TOKENIZER_TERM.search(lower)


def without_secrets(text: str) -> str:
    """Return a text in which everything that looks like a secret is replaced by `REDACTED`."""
    return _VALUE.sub(REDACTED, text)


def redacted(value: Any) -> Any:
    """Return a JSON value without what looks like a secret, by its key or by its content."""
    if isinstance(value, dict):
        return {
            key: REDACTED
            if isinstance(child, str) and child and is_secret_name(str(key))
            else redacted(child)
            for key, child in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(child) for child in value]
    return without_secrets(value) if isinstance(value, str) else value


def without_folders(value: Any) -> Any:
    """Return a JSON value in which absolute paths are shortened to their last part."""
    if isinstance(value, dict):
        return {key: without_folders(child) for key, child in value.items()}
    if isinstance(value, list):
        return [without_folders(child) for child in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
