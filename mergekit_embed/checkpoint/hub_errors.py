"""What the Hub's client raises: whether it is the connection, and its words without secrets."""

from __future__ import annotations

import re

SECRETS = re.compile(r"\b(?:hf|api_org|xet)_\w+|(?<=Bearer )\S+|(?<=\?)\S+")
"""Tokens, and what stands behind the `?` of an address: signed ones let anybody read or write."""

CLIENTS = {"hf_xet", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"}
"""Whose errors come from the way to the Hub; which of them the client uses changes with it."""

TOKENS = "huggingface.co/settings/tokens"

UNKNOWN_TOKEN = (
    "the Hub does not know the token; run `hf auth login` again, or set HF_TOKEN to a new one "
    f"({TOKENS})"
)


def without_secrets(text: str) -> str:
    """A message of others, its first line, without tokens and signed addresses."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return SECRETS.sub("[...]", lines[0]) if lines else ""


def is_of_the_way(error: BaseException) -> bool:
    """True for an error of the connection, or of what makes it."""
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return bool(kinds & CLIENTS) or isinstance(error, ConnectionError | TimeoutError)


def is_unknown_token(error: BaseException) -> bool:
    """True when the Hub says that it knows no such token; it has other words for what is hidden."""
    from huggingface_hub.errors import RepositoryNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    return status == 401 and not isinstance(error, RepositoryNotFoundError)
