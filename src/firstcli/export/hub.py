"""Upload an exported folder to the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from firstcli.errors import UserError

TOKEN = "HF_TOKEN"


def require_token() -> str:
    """Return the token, which only the environment may contain.

    Raises:
        UserError: there is none.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise UserError(
            f"--hub: the environment variable {TOKEN} is not set; create a token with write access "
            "at https://huggingface.co/settings/tokens, or add --dry-run"
        )
    return token


def upload(folder: Path, repository: str, title: str) -> str:
    """Upload a folder to a model repository, which is created as a private one if there is none.

    Args:
        folder: the exported folder.
        repository: its hub id, such as `owner/name`.
        title: the exported model, for the commit's message.

    Returns:
        The address of the repository.

    Raises:
        UserError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=require_token())
    try:
        url = api.create_repo(repository, repo_type="model", private=True, exist_ok=True)
        api.upload_folder(
            folder_path=folder, repo_id=repository, commit_message=f"first export: {title}"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--hub {repository}: the upload failed ({reason}); {folder} is complete, so check "
            f"{TOKEN} and the name, and upload it with `hf upload {repository} {folder}`"
        ) from error
    return str(url)
