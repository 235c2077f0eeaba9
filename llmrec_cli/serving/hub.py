"""Pushing an exported folder to the Hugging Face hub, through its own client and login."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmrec_cli.errors import MachineError, RecipeError


def check_hub_id(option: str, hub_id: str) -> None:
    """Refuse what cannot be a repository of the hub.

    Raises:
        RecipeError: expected OWNER/NAME; the message names the option that gave it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # lazily

    try:
        validate_repo_id(hub_id)
    except HFValidationError:
        raise RecipeError(
            f"{option} {hub_id}: expected a name on the hub, OWNER/NAME, of letters, digits and -_."
        ) from None


def check_push(hub_id: str) -> None:
    """Refuse what cannot be pushed, before any work for it.

    Raises:
        RecipeError: no name of a repository.
        MachineError: nobody is logged in.
    """
    from huggingface_hub import get_token

    check_hub_id("--push-to", hub_id)
    if get_token() is None:
        raise MachineError(f"--push-to {hub_id}: not logged in to the hub; run: hf auth login")


def push(folder: Path, hub_id: str, *, public: bool, api: Any = None) -> str:
    """Create the repository where there is none, private unless ``public``, and upload a folder.

    Args:
        api: the hub's client; by default one with the hub's own address and login.

    Returns:
        The repository's address.

    Raises:
        RecipeError: the repository exists and everybody can read it, which was not asked for.
        MachineError: no login, no permission, no network; nothing of a login is in the message.
    """
    from huggingface_hub import HfApi

    api = api or HfApi()
    try:
        url = api.create_repo(hub_id, private=not public, exist_ok=True)
        if not public and not api.repo_info(url.repo_id).private:
            raise RecipeError(
                f"--push-to {hub_id}: exists and is public; add --public to publish there. "
                f"Nothing was uploaded; the export is in {folder}"
            )
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, commit_message="Model exported by llmrec"
        )
    except RecipeError:
        raise
    except Exception as error:  # the client's own kinds change with its version
        reason = _without(_line(error), api)
        raise MachineError(
            f"--push-to {hub_id}: not pushed: {reason}; the export is in {folder}"
        ) from None
    return str(url)


def _line(error: BaseException) -> str:
    """What an error says, on one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line) or type(error).__name__


def _without(text: str, api: Any) -> str:
    """``text`` with no token in it, whatever a server or a proxy answered."""
    from huggingface_hub import get_token

    for token in (api.token, get_token()):
        if isinstance(token, str) and token:
            text = text.replace(token, "[token]")
    return text
