"""Secrets and folders that must not be published."""

from __future__ import annotations

import pytest

from firstcli.runtime.redaction import REDACTED, redacted, without_folders, without_secrets

TOKENS = [
    "hf_" + "aB3" * 11,
    "sk-" + "x1-Y" * 8,
    "ghp_" + "a" * 36,
    "github_pat_" + "a1_" * 9,
    "glpat-" + "a" * 20,
    "xoxb-1234567890-abc",
    "AKIA" + "ABCD" * 4,
    "AIza" + "a" * 35,
    ".".join(["eyJhbGciOiJIUzI1"] * 3),
]


@pytest.mark.parametrize("token", TOKENS)
def test_tokens_are_recognised_in_any_text(token: str) -> None:
    assert without_secrets(f"use '{token}' here") == f"use '{REDACTED}' here"
    assert redacted({"a": [f"x {token}"]}) == {"a": [f"x {REDACTED}"]}


def test_a_password_in_a_url_is_recognised() -> None:
    text = "https://anna:geheim@example.org/x@y and https://example.org:80/a"
    assert without_secrets(text) == text.replace("anna:geheim", REDACTED)


@pytest.mark.parametrize(
    "name", ["token", "hub_token", "api_key", "API-KEY", "x.options.wandb_api_key", "db_password"]
)
def test_keys_of_secrets_are_recognised(name: str) -> None:
    assert redacted({name: "anything"}) == {name: REDACTED}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token", "</s>"),
        ("student.model.options.stop_token", "###"),
        ("max_tokens", 5),
        ("key", "a"),
        ("id_column", "token_id"),
        ("tokenizer", "gpt2"),
        ("api_key", None),
        ("checkpoint", "sk-learn/hf_model"),
        ("path", "/data/sk-wikipedia-20240101-cleaned.jsonl"),
        ("token", ""),
    ],
)
def test_other_values_stay(key: str, value: object) -> None:
    assert redacted({key: value}) == {key: value}


def test_folders_are_left_out() -> None:
    given = {"path": ["/home/anna/data/a.csv", "b/c.csv"], "n": 1, "hub": "owner/name"}
    assert without_folders(given) == {"path": ["a.csv", "b/c.csv"], "n": 1, "hub": "owner/name"}
    assert without_folders("/home/anna/mmlu/*/test-*.parquet") == "mmlu/*/test-*.parquet"
    assert without_folders("/*.csv") == "*.csv"


@pytest.mark.parametrize("text", ["/", "/think {question}\nA/B:", "/{name}/", "a/b"])
def test_texts_that_are_no_paths_stay(text: str) -> None:
    assert without_folders(text) == text
