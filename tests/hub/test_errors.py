"""What the Hub refuses is told in a sentence that says what to do, and no secret in it."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from mergekit_embed.checkpoint.hub_errors import without_secrets
from mergekit_embed.errors import HubError
from mergekit_embed.publish.target import Target

from .server import Fault, LoopbackHub
from .test_push import HERE, contents, pushed, visible

CREATE, SEND, COMMIT = "POST /api/repos/create", "PUT /objects", "POST .*/commit/"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault(CREATE, 403, message="no quota"), r"the token may not do that \(no quota"),
        (Fault(CREATE, 409), "somebody else wrote to it at the same time"),
        (Fault(SEND, 403, message="expired"), "the token may not do that"),
        (Fault(SEND, 500), r"the Hub is in trouble \(status 500\)"),
        (Fault(SEND, 503), "run the same command again: what was sent is not sent twice"),
        (Fault(COMMIT, 401), "the Hub does not know the token; run `hf auth login` again"),
        (Fault(COMMIT, 404, code="RepoNotFound"), "the Hub has no such repository"),
        (Fault(COMMIT, 409), "look, and push again"),
        (Fault(COMMIT, 412), "somebody else wrote to it at the same time"),
        (Fault(COMMIT, 413), "choose a smaller `max_shard_size`"),
        (Fault(COMMIT, 429, headers={"Retry-After": "7"}), "go slower.*wait 7 s, then run"),
        (Fault(COMMIT, 429), "wait some minutes"),
        (Fault("preupload", 400, message="bad"), r"the Hub refuses \(status 400\) \(bad"),
        (Fault("GET /api/models/", 403, code="GatedRepo"), "is gated: ask for access"),
        (Fault("GET /api/models/", 502), r"the Hub is in trouble \(status 502\)"),
        (Fault(COMMIT, 404, code="RevisionNotFound"), "has no such revision"),
    ],
    ids=lambda value: f"{value.pattern} {value.status}" if isinstance(value, Fault) else "",
)
def test_refusals(
    hub: LoopbackHub,
    merged: Path,
    fault: Fault,
    told: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fault.message += " for hf_alice at http://storage/x?secret=signature"
    hub.faults.append(fault)
    with caplog.at_level(logging.WARNING), pytest.raises(HubError, match=f"^{HERE}: ") as caught:
        pushed(merged)
    said = str(caught.value)
    assert "\n" not in said
    printed = "".join(capfd.readouterr())
    for secret in ("hf_alice", "signature", "secret"):
        assert secret not in said + caplog.text + printed
    assert re.search(told, said)
    assert all(not state for state in visible(hub))


def test_what_passes_is_tried_again(hub: LoopbackHub, merged: Path) -> None:
    hub.faults += [
        Fault(SEND, 500, times=2),
        Fault("preupload", 429, times=1, headers={"Retry-After": "3"}),
        Fault("batch", 503, times=1),
    ]
    assert pushed(merged).is_new
    assert hub.store.files(HERE) == contents(merged)


def test_a_push_on_top_of_another_is_refused(hub: LoopbackHub, merged: Path) -> None:
    hub.store.create(HERE)

    def another(point: int) -> None:
        if hub.asked(SEND) and not hub.store.files(HERE):
            header = {"key": "header", "value": {"summary": "another's"}}
            file = {"path": "notes.txt", "content": "bm90ZXM="}
            lines = [header, {"key": "file", "value": file}]
            hub.store.commit(HERE, "main", lines, "alice", pr=False)

    hub.at_point = another
    with pytest.raises(HubError, match="somebody else wrote to it at the same time"):
        pushed(merged)
    assert hub.store.files(HERE) == {"notes.txt": b"notes"}


def test_offline(hub: LoopbackHub, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, and pushing needs the Hub"):
        pushed(merged)
    assert hub.requests == []


def test_a_hub_that_is_not_there(
    hub: LoopbackHub, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="the connection to the Hub failed"):
        pushed(merged, Target(HERE))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("token hf_AbC123 is bad\nmore", "token [...] is bad"),
        ("\n  Bearer abc.def  ", "Bearer [...]"),
        ("PUT http://s3/x?X-Amz-Signature=abc&y failed", "PUT http://s3/x?[...] failed"),
        ("api_org_QQQ", "[...]"),
        ("", ""),
        ("plain", "plain"),
    ],
)
def test_secrets_are_cut_out(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
