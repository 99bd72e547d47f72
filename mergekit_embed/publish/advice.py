"""What the Hub refuses, in one sentence that says what to do, and never a secret."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..checkpoint.hub_errors import (
    TOKENS,
    UNKNOWN_TOKEN,
    is_of_the_way,
    is_unknown_token,
    without_secrets,
)
from ..errors import HubError, MergekitEmbedError

AGAIN = "run the same command again: what was sent is not sent twice"


@contextmanager
def advised(repository: str) -> Iterator[None]:
    """Whatever the Hub's client raises in the block, as a `HubError` about this repository.

    Raises:
        HubError: saying what to do.
    """
    try:
        yield
    except MergekitEmbedError:
        raise
    except Exception as error:
        told = _told(error, repository)
        if told is None:
            raise
        raise HubError(told) from error


def _told(error: BaseException, repository: str) -> str | None:
    """What to say of an error, or of the first that it comes from and that is known."""
    from huggingface_hub import errors

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, errors.OfflineModeIsEnabled):
            return f"{repository}: HF_HUB_OFFLINE is set, and pushing needs the Hub; unset it"
        if isinstance(seen, errors.LocalTokenNotFoundError):
            return (
                f"{repository}: there is no token of the Hub; run `hf auth login`, or set HF_TOKEN "
                f"to one with the right to write ({TOKENS})"
            )
        if isinstance(seen, errors.HFValidationError):
            return f"{repository!r} is no name of a repository; write OWNER/NAME"
        if isinstance(seen, errors.HfHubHTTPError):
            return f"{repository}: {_refused(seen)}"
        if is_of_the_way(seen):
            reason = without_secrets(str(seen)) or type(seen).__name__
            return f"{repository}: the connection to the Hub failed ({reason}); {AGAIN}"
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, ValueError):  # the client's own checks of what the Hub answers
        return f"{repository}: {without_secrets(str(error))}"
    return None


def _refused(error: BaseException) -> str:
    """What an HTTP status of the Hub means for who pushes."""
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    said = without_secrets(getattr(error, "server_message", None) or "")
    words = f" ({said})" if said else ""
    if isinstance(error, errors.GatedRepoError):
        return "is gated: ask for access on its page of the Hub, then run `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no such revision{words}"
    if is_unknown_token(error):
        return UNKNOWN_TOKEN
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return (
            "the Hub has no such repository, or does not show it to you; look at the name, and "
            "whose token you use with `hf auth whoami`"
        )
    if status == 403:
        return (
            f"the token may not do that{words}; make one with the right to write ({TOKENS}), or "
            "ask the owner"
        )
    if status in {409, 412}:
        return f"somebody else wrote to it at the same time{words}; look, and push again"
    if status == 413:
        return f"the Hub takes no files so large{words}; choose a smaller `max_shard_size`"
    if status == 429:
        wait = _wait(response)
        return f"the Hub asks to go slower{words}; wait {wait}, then {AGAIN}"
    if status >= 500:
        return f"the Hub is in trouble (status {status}){words}; {AGAIN}"
    return f"the Hub refuses (status {status}){words}"


def _wait(response: object) -> str:
    """How long the Hub wants one to wait."""
    headers = getattr(response, "headers", {})
    after = headers.get("Retry-After", "")
    return f"{after} s" if after.isdigit() else "some minutes"
