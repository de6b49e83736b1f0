"""Remove what must not be published: secrets from everything, folders from pages and cards."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

REDACTED = "<redacted>"

_NAME = re.compile(
    r"""
    (?:^|[._])(?:auth|access|api|bearer|hf|hub|login|private|refresh|secret|wandb|comet)_?(?:token|key)s?$
    |(?:^|\.)token$                              # `stop_token` is a term of tokenizers
    |(?:^|[._])(?:password|passwd|passphrase|secret|credential)s?$
    """,
    re.VERBOSE,
)
_VALUE = re.compile(
    r"""
    \bhf_[A-Za-z0-9]{16,}                        # Hugging Face
    |\bgh[opsru]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}
    |\bglpat-[\w-]{16,}
    |(?<![\w/-])sk-[A-Za-z0-9_-]{20,}            # OpenAI and others
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
    return bool(_NAME.search(name.lower().replace("-", "_")))


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
    """Return a JSON value in which absolute paths are shortened to their last part.

    A pattern keeps the folder before its first wildcard.
    """
    if isinstance(value, dict):
        return {key: without_folders(child) for key, child in value.items()}
    if isinstance(value, list):
        return [without_folders(child) for child in value]
    return _without_folder(value) if isinstance(value, str) else value


def _without_folder(text: str) -> str:
    parts = Path(text).parts
    if not Path(text).is_absolute() or len(parts) < 2 or set(text) & set("\n{"):  # a template
        return text
    wildcards = [i for i, part in enumerate(parts) if glob.has_magic(part)]
    start = max(wildcards[0] - 1, 1) if wildcards else len(parts) - 1
    return "/".join(parts[start:])
