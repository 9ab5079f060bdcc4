"""Checks, before hours of work, that a repository on the Hugging Face Hub can be written."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from coco224.errors import DataError, first_line

_LONGEST_NAME = 96
_SECONDS = 10.0  # limit for an answer, which the client waits for up to six times; it has none of its own


def is_repository(name: str) -> bool:
    """Whether a name has the Hub's form USER/NAME, by the rules of its client; other names can only be paths."""
    part = r"[a-zA-Z0-9_](?:[a-zA-Z0-9_.-]*[a-zA-Z0-9_])?"
    odd = "--" in name or ".." in name or name.endswith(".git") or len(name) > _LONGEST_NAME
    return re.fullmatch(f"{part}/{part}", name) is not None and not odd


def open_repository(option: str, repo_id: str, repo_type: str, private: bool) -> str:
    """Creates the repository if necessary, and checks that this token may write there.

    Args:
        option: the option that named it, for errors.
        repo_type: "model" or "dataset".

    Returns:
        Empty, or the sentence that says what is wrong with the Hub now; it may work later.

    Raises:
        DataError: there is no token, it is wrong, or it may not write there.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    limit_waits()
    api = HfApi()
    try:
        role = api.whoami().get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise DataError(f"{option} {repo_id}: this token may only read; log in with a token that may write")
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    except LocalTokenNotFoundError:
        raise DataError(f"{option} {repo_id}: no Hugging Face token; run `hf auth login` or set HF_TOKEN") from None
    except OfflineModeIsEnabled:
        raise DataError(f"{option} {repo_id}: HF_HUB_OFFLINE is set; unset it, or do not push") from None
    except HFValidationError as error:
        raise DataError(f"{option} {repo_id} is not a repository name ({error}); give USER/NAME") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise DataError(
                f"{option} {repo_id}: the Hub does not know this token; log in again with `hf auth login`, or set "
                "HF_TOKEN to a valid one"
            ) from None
        if status == 403:
            raise DataError(
                f"{option} {repo_id}: this token may not write there; give a repository of your own, or log in with a "
                "token that may"
            ) from None
        return f"the Hub answers with status {status}"
    except HTTPError as error:
        return f"the Hub cannot be reached ({str(error) or type(error).__name__})"
    return ""


def limit_waits() -> None:
    """Lets the Hub's client wait for an answer for `_SECONDS` at most."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    get_session().timeout = _SECONDS


@contextmanager
def reasons(what: str, *more: type[Exception]) -> Iterator[None]:
    """Turns errors of the Hub's clients, and of `more` classes, into one sentence: `what` and the reason.

    Raises:
        DataError: instead of an error of HTTP, of the network or of a large upload.
    """
    from httpx2 import HTTPError

    limit_waits()
    kinds: tuple[type[Exception], ...] = (HTTPError, OSError, RuntimeError, ValueError, *more)
    try:
        yield
    except kinds as error:
        raise DataError(f"{what} ({cause_of(error)[1]})") from error


def cause_of(error: Exception) -> tuple[BaseException, str]:
    """The error that a client of the Hub met, and its first line; it wraps that of a large file in a RuntimeError."""
    cause = (error.__cause__ if isinstance(error, RuntimeError) else None) or error
    return cause, first_line(cause)
