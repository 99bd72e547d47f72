"""Pushing a folder: all of it in one commit, only where it may go, and only if it is sound."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import snapshot_download
from safetensors.numpy import load_file, save_file

from mergekit_embed.errors import HubError, PublishError, UsageError
from mergekit_embed.publish.push import Pushed, push
from mergekit_embed.publish.target import Target

from .server import LoopbackHub

HERE = "alice/model"


def pushed(folder: Path, target: Target | str = HERE, *, loads: bool = False) -> Pushed:
    return push(folder, target, loads=loads)


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def visible(hub: LoopbackHub, repository: str = HERE) -> list[set[str]]:
    """The names of the files of every state that could be seen, one after the other."""
    return [
        set(one.files) - {".gitattributes"}
        for one in hub.store.history
        if one.repository == repository
    ]


def test_what_is_pushed_embeds_the_same_elsewhere(
    hub: LoopbackHub, merged: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    result = push(merged, HERE)
    assert result.is_new and result.url == f"{hub.url}/{HERE}"
    assert result.commit == hub.store.repository(HERE).refs["refs/heads/main"]
    assert hub.store.files(HERE) == contents(merged)
    back = snapshot_download(HERE, cache_dir=tmp_path / "elsewhere")
    texts = ["the quick brown fox", "a lazy dog by the river"]
    here, there = (SentenceTransformer(str(f), device="cpu").encode(texts) for f in (merged, back))
    np.testing.assert_array_equal(here, there)


def test_all_files_come_in_one_commit(hub: LoopbackHub, merged: Path) -> None:
    pushed(merged)
    assert visible(hub) == [set(), set(contents(merged))]
    assert len([name for name in contents(merged) if name.endswith(".safetensors")]) > 3


def test_large_files_in_several_parts(hub: LoopbackHub, merged: Path) -> None:
    hub.part_size = 10_000
    pushed(merged)
    assert hub.asked(r"PUT /objects/\w+/2")
    assert hub.store.files(HERE) == contents(merged)


def test_pushing_again_commits_nothing(hub: LoopbackHub, merged: Path) -> None:
    first = pushed(merged)
    hub.calm()
    again = pushed(merged)
    assert not again.is_new and again.commit == first.commit
    assert not hub.asked("PUT|commit") and hub.sent == 0


def test_only_what_has_changed_is_sent(hub: LoopbackHub, merged: Path) -> None:
    pushed(merged)
    (merged / "NOTES.md").write_text("new")
    hub.calm()
    result = pushed(merged)
    assert (result.files, hub.sent) == (1, 0)
    assert hub.store.files(HERE) == contents(merged)


def test_a_private_repository(hub: LoopbackHub, merged: Path) -> None:
    pushed(merged, Target("lab/model", private=True))
    assert hub.store.repository("lab/model").private
    pushed(merged)
    with pytest.raises(HubError, match="is public already; make it private in its settings"):
        pushed(merged, Target(HERE, private=True))


def test_a_branch_is_made_and_holds_nothing_else(hub: LoopbackHub, merged: Path) -> None:
    pushed(merged)
    before = hub.store.files(HERE)
    (merged / "model.extra").write_text("of the new one")
    (merged / "NOTES.md").write_text("of the new one too")
    result = pushed(merged, Target(HERE, revision="v2"))
    assert result.url.endswith("/tree/v2") and result.notes == ()
    assert hub.store.files(HERE, "v2") == contents(merged)
    assert hub.store.files(HERE) == before


def test_the_card_of_a_merge_says_its_name_on_the_hub(hub: LoopbackHub, merged: Path) -> None:
    pushed(merged)
    card = hub.store.files(HERE)["README.md"].decode()
    assert f'SentenceTransformer("{HERE}")' in card and "# A merged model\n" in card
    before = contents(merged)
    merged.chmod(0o555)
    pushed(merged, "lab/other")
    assert contents(merged) == before or os.geteuid() == 0


def test_a_model_without_a_card(hub: LoopbackHub, merged: Path) -> None:
    (merged / "README.md").unlink()
    (merged / "merge_lineage.json").unlink()
    (merged / "merge_manifest.json").unlink()
    result = pushed(merged)
    assert "README.md" not in hub.store.files(HERE)
    assert "no README.md" in result.notes[0]


def test_a_pull_request_is_made_once(hub: LoopbackHub, merged: Path) -> None:
    hub.store.create("bob/model")
    target = Target("bob/model", create_pr=True)
    first = pushed(merged, target)
    assert first.url.endswith("/bob/model/discussions/1")
    assert hub.store.files("bob/model", "refs/pr/1") == contents(merged)
    assert hub.store.files("bob/model") == {}
    again = pushed(merged, target)
    assert (again.is_new, again.revision, again.url) == (False, "refs/pr/1", first.url)
    (merged / "config.json").write_text("{}")
    assert pushed(merged, target).url.endswith("/discussions/2")


def test_a_pull_request_needs_a_repository(hub: LoopbackHub, merged: Path) -> None:
    with pytest.raises(HubError, match="a pull request needs a repository"):
        pushed(merged, Target("bob/nothing", create_pr=True))


def test_what_another_wrote_is_not_replaced_unasked(hub: LoopbackHub, merged: Path) -> None:
    pushed(merged)
    before = hub.store.files(HERE)
    (merged / "config.json").write_text("{}")
    old = sorted(merged.glob("*.safetensors"))[0]
    (merged / "unrelated.safetensors").write_bytes(old.read_bytes())
    (merged / "tokenizer.json").rename(merged / "tokens.json")
    for name in ("merge_manifest.json", "merge_lineage.json"):
        (merged / name).unlink()
    told = "holds config.json, merge_lineage.json, merge_manifest.json and 1 more, which this merge"
    with pytest.raises(HubError, match=told):
        pushed(merged)
    assert hub.store.files(HERE) == before
    pushed(merged, Target(HERE, overwrite=True))
    assert hub.store.files(HERE) == contents(merged)


@pytest.mark.parametrize(
    ("repository", "token", "told"),
    [
        ("bob/model", "hf_alice", r"bob is neither you \(alice\) nor an organisation of yours"),
        ("club/model", "hf_alice", "may only read in club"),
        ("alice/model", "hf_reader", "the token of alice may only read"),
        ("alice/model", "hf_nobody", "the Hub does not know the token; run `hf auth login`"),
    ],
)
def test_somebody_elses_place(
    hub: LoopbackHub,
    merged: Path,
    monkeypatch: pytest.MonkeyPatch,
    repository: str,
    token: str,
    told: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=told) as caught:
        pushed(merged, repository)
    assert token not in str(caught.value)
    assert not hub.store.repositories


def test_without_a_token(
    hub: LoopbackHub, merged: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(HubError, match="there is no token of the Hub; run `hf auth login`"):
        pushed(merged)


@pytest.mark.parametrize("name", ["model", "a/b/c", "a/..%", "alice/mod el", "", "-o/"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError, match="is no name of a repository; write OWNER/NAME"):
        Target(name)


def spoil(path: Path, value: float, name: str | None = None) -> str:
    tensors = load_file(path)
    name = name or sorted(tensors)[0]
    tensors[name] = tensors[name].copy()
    tensors[name].reshape(-1)[-1] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return name


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def refused(hub: LoopbackHub, folder: Path) -> str:
    """What a push says of a folder, after which the Hub is as it was."""
    with pytest.raises(PublishError) as caught:
        pushed(folder)
    assert not hub.store.repositories and not hub.asked("PUT|create|commit")
    return str(caught.value)


def test_nothing_is_pushed_of_a_model_with_a_shard_missing(hub: LoopbackHub, merged: Path) -> None:
    gone = shards(merged)[1]
    gone.unlink()
    assert f"{gone.name}: is missing; the merge had written it" in refused(hub, merged)
    (merged / "merge_manifest.json").unlink()
    assert f"names the shard '{gone.name}', which is not there" in refused(hub, merged)


def test_nothing_is_pushed_of_a_model_with_a_shard_cut_short(
    hub: LoopbackHub, merged: Path
) -> None:
    cut = shards(merged)[0]
    cut.write_bytes(cut.read_bytes()[:-8])
    assert cut.name in refused(hub, merged)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_is_pushed_that_is_not_finite(hub: LoopbackHub, merged: Path, value: float) -> None:
    (merged / "merge_manifest.json").unlink()
    name = spoil(shards(merged)[-1], value)
    said = refused(hub, merged)
    assert said == f"{name}: holds not-a-number or infinity ({shards(merged)[-1].name})"


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_bfloat16_that_is_not_finite(hub: LoopbackHub, tmp_path: Path, bits: int) -> None:
    import torch
    from safetensors.torch import save_file as save

    folder = tmp_path / "bf16"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    whole = torch.full((3, 5), 3.0e38, dtype=torch.bfloat16)
    save({"a": whole}, folder / "model.safetensors")
    assert pushed(folder, "alice/good").is_new
    hub.store.repositories.clear()
    hub.calm()
    whole.view(torch.uint16)[2, 4] = bits
    save({"a": whole}, folder / "model.safetensors")
    assert "a: holds not-a-number" in refused(hub, folder)


def test_nothing_is_pushed_that_does_not_load(hub: LoopbackHub, merged: Path) -> None:
    (merged / "tokenizer_config.json").write_text('{"tokenizer_class": 5}')
    (merged / "tokenizer.json").write_text("{}")
    with pytest.raises(PublishError, match="does not load in sentence-transformers") as caught:
        push(merged, HERE)
    assert "--skip-load" in str(caught.value)
    assert not hub.store.repositories


def test_nothing_is_pushed_with_a_broken_card(hub: LoopbackHub, merged: Path) -> None:
    (merged / "README.md").write_text("---\ntags: [\n---\n")
    assert "README.md: has metadata that cannot be read" in refused(hub, merged)


def test_what_the_hub_says_of_a_card(hub: LoopbackHub, merged: Path) -> None:
    (merged / "README.md").write_text("---\nlicense: [mit, apache-2.0]\n---\n")
    with pytest.raises(HubError, match='"license" must be a string'):
        pushed(merged)
    assert visible(hub) == [set()]


def test_an_unfinished_merge_is_not_pushed(hub: LoopbackHub, merged: Path) -> None:
    (merged / "merge_journal.jsonl").write_text("")
    assert "is a merge that has not come to its end" in refused(hub, merged)


def test_what_a_training_leaves_stays_here(hub: LoopbackHub, merged: Path) -> None:
    before = contents(merged)
    for name in ("checkpoint-7/model.safetensors", ".cache/x", "runs/events", "optimizer.pt"):
        (merged / name).parent.mkdir(exist_ok=True)
        (merged / name).write_bytes(b"x")
    pushed(merged)
    assert set(hub.store.files(HERE)) == set(before)


def test_links_to_folders_are_refused(hub: LoopbackHub, merged: Path, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (merged / "linked").symlink_to(tmp_path / "private")
    assert "linked: is a link to a folder" in refused(hub, merged)


def test_an_adapter_is_pushed_too(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1}))
    save_file(
        {"a.lora_A.weight": np.ones((1, 4), np.float32)}, folder / "adapter_model.safetensors"
    )
    assert push(folder, "alice/adapter").files == 2
