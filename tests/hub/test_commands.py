"""boom-push, and processes of their own, which read where the Hub is at their start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Family
from helpers import write_recipe

from mergekit_embed.cli.push import push

from .client import environment
from .server import LoopbackHub
from .test_push import HERE, contents


def boom_push(*arguments: str | Path) -> tuple[int, str, str]:
    ran = CliRunner().invoke(push, [str(one) for one in arguments], standalone_mode=False)
    code = ran.return_value if isinstance(ran.return_value, int) else 0
    assert ran.exception is None, ran.exception
    return code, ran.stdout, ran.stderr


def test_a_dry_run_lists_what_would_go(hub: LoopbackHub, merged: Path) -> None:
    code, out, _ = boom_push(merged, HERE, "--dry-run", "--skip-load")
    assert code == 0 and "alice/model, which is made" in out
    shard = sorted(merged.glob("*.safetensors"))[0]
    for path in contents(merged):
        assert f"sends  {path}   " in out
    assert f"{shard.name}   {round(shard.stat().st_size / 1000)} kB" in out
    code, out, _ = boom_push(merged, HERE, "--dry-run", "--skip-load", "--json")
    told = json.loads(out)
    assert told["sends"] == {name: len(raw) for name, raw in contents(merged).items()}
    assert told["creates"] and not hub.asked("PUT|create|commit")


def test_one_line_tells_where_it_is(hub: LoopbackHub, merged: Path) -> None:
    code, out, _ = boom_push(merged, HERE, "--skip-load")
    assert code == 0 and out.startswith(f"pushed {len(contents(merged))} files, ")
    assert out.endswith(f"{hub.url}/{HERE}\n")
    assert boom_push(merged, HERE)[1] == f"all is there   {hub.url}/{HERE}\n"
    assert boom_push(merged, HERE, "--quiet")[1:] == ("", "")


def test_problems_are_listed(hub: LoopbackHub, merged: Path) -> None:
    for path in sorted(merged.glob("*.safetensors"))[:2]:
        path.unlink()
    code, _, said = boom_push(merged, HERE)
    assert code == 1 and "problems; nothing was pushed" in said
    code, out, _ = boom_push(merged, HERE, "--json")
    assert code == 1 and len(json.loads(out)["problems"]) >= 2


def test_what_is_no_folder_or_no_name(hub: LoopbackHub, tmp_path: Path) -> None:
    code, _, said = boom_push(tmp_path / "nothing", HERE)
    assert code == 2 and "is not a folder; name that of a model" in said
    code, _, said = boom_push(tmp_path, "model")
    assert code == 2 and "'model' is no name of a repository; write OWNER/NAME" in said
    assert hub.requests == []


def test_a_process_of_its_own(hub: LoopbackHub, merged: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from mergekit_embed.cli.boom import main; main()", "push"]
    ran = subprocess.run(
        [*command, merged, HERE, "--skip-load", "--json"],
        env=environment(hub, tmp_path / "cache"),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout)["is_new"]
    assert hub.store.files(HERE) == contents(merged)


XET = """
import sys
from pathlib import Path
from mergekit_embed.publish.push import push
from mergekit_embed.publish.stream import stream_to_hub
import hf_xet, mergekit_embed

folder, recipe, place, back = map(Path, sys.argv[1:5])
push(folder, "alice/pushed", loads=False)
stream_to_hub(mergekit_embed.plan(str(recipe), str(place)), "alice/streamed")
session = hf_xet.XetSession()
for shard in sorted(folder.glob("*.safetensors")):
    (found,) = hf_xet.hash_files([str(shard)])
    with session.new_file_download_group(endpoint=sys.argv[5]) as group:
        info = hf_xet.XetFileInfo(found.hash, shard.stat().st_size)
        group.start_download_file(info, str(back / shard.name))
"""


def test_large_files_by_xet(hub: LoopbackHub, merged: Path, tmp_path: Path, family: Family) -> None:
    pytest.importorskip("hf_xet")
    store, back = tmp_path / "cas", tmp_path / "back"
    store.mkdir()
    back.mkdir()
    hub.xet = f"local://{store}"
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        {
            "merge_method": "linear",
            "models": [{"model": str(member)} for member in family.members],
            "max_shard_size": "30KB",
        },
    )
    ran = subprocess.run(
        [sys.executable, "-c", XET, merged, recipe, tmp_path / "place", back, hub.xet],
        env=environment(hub, tmp_path / "cache", HF_HUB_DISABLE_XET="0", HF_HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert hub.asked("xet-write-token") and not hub.asked("PUT|batch")
    shards = {path.name: path.read_bytes() for path in merged.glob("*.safetensors")}
    assert {path.name: path.read_bytes() for path in back.iterdir()} == shards
    for name in ("alice/pushed", "alice/streamed"):
        commit = hub.store.repository(name).refs["refs/heads/main"]
        listed = hub.store.repository(name).commits[commit]
        assert {path: listed[path].size for path in shards} == {
            name: len(raw) for name, raw in shards.items()
        }
