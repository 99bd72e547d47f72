"""The benchmark of speed works end to end, on tiny models; its page shows what it measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import performance_page as page
import pytest
import torch
from checkpoints import QWEN3, RECORD, bfloat16, qwen3_models
from processes import Failed, drop_from_cache, measured
from tensor_folders import read_folder

ROOT = Path(__file__).parent.parent
TINY = QWEN3["tiny"]
USAGE = {
    "wall_s",
    "cpu_s",
    "peak_mb",
    "peak_anonymous_mb",
    "disk_read_mb",
    "disk_written_mb",
}
OURS = USAGE | {"run_s", "read_mb", "written_mb"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("speed")
    results = folder / "speed.json"
    options = ["--tiny", "--cold", "--methods", "linear", "ties"]
    command = [sys.executable, str(ROOT / "benchmarks" / "speed.py"), *options]
    subprocess.run([*command, "--data", str(folder), "--results", str(results)], check=True)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["tiny"]
    found: dict[str, Any] = json.loads(results.read_text())
    return found


@pytest.mark.parametrize(
    ("cache", "floors"),
    [
        ("warm", {"read 4 models", "read 5 models", "copy", "copy, synced"}),
        ("cold", {f"read {n} models{how}" for n in (4, 5) for how in ("", ", direct")}),
    ],
)
def test_speed_measures_ours_and_the_floors(
    report: dict[str, Any], cache: str, floors: set[str]
) -> None:
    entries = report["tiny"][cache]
    found = {(one["tool"], one["what"]): one for one in entries}
    ours = {("ours", "linear"), ("ours", "ties")}
    assert found.keys() == {("floor", name) for name in floors} | ours
    for (tool, what), one in found.items():
        if what.endswith("direct") and "failed" in one:
            assert "refuses O_DIRECT" in one["failed"]
            continue
        assert one["median"].keys() == (OURS if tool == "ours" else USAGE)
        assert one["runs"] == [one["median"]]
        assert one["median"]["wall_s"] > 0


def test_speed_tells_what_ours_took(report: dict[str, Any]) -> None:
    size = TINY.nbytes() / 1e6
    for one in report["tiny"]["warm"]:
        if one["tool"] == "ours":
            took = one["median"]
            assert 0 < took["run_s"] < took["wall_s"]
            assert 1 < took["peak_anonymous_mb"] < took["peak_mb"]
            assert took["written_mb"] == pytest.approx(size, rel=0.1)
            assert took["read_mb"] > 0.99 * (4 if one["what"] == "linear" else 5) * size
    about = report["tiny"]["about"]
    assert about["model_bytes"] == TINY.nbytes()
    assert about["versions"]["ours"].keys() >= {"numpy", "torch"}


def test_the_models_are_those_of_the_real_class(tmp_path: Path) -> None:
    from transformers import AutoModel, Qwen3Model

    models = qwen3_models(tmp_path / "tiny", TINY)
    loaded = AutoModel.from_pretrained(models.base)
    assert isinstance(loaded, Qwen3Model)
    stored = read_folder(models.base)
    state = loaded.state_dict()
    assert state.keys() == stored.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor.double().numpy(), stored[name])


def test_members_lie_one_percent_from_the_base_and_apart(tmp_path: Path) -> None:
    models = qwen3_models(tmp_path / "tiny", TINY)
    name = "embed_tokens.weight"
    base, *members = (read_folder(path)[name] for path in (models.base, *models.members))
    deltas = [member - base for member in members]
    # Rounding to bfloat16 adds about as much again as a sixth of the noise.
    spreads = [float(np.std(delta) / np.std(base)) for delta in deltas]
    assert spreads == pytest.approx([0.01] * 4, rel=0.1)
    overlaps = np.corrcoef([delta.ravel() for delta in deltas]) - np.eye(4)
    assert np.abs(overlaps).max() < 0.05


def test_models_are_made_once_and_others_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    qwen3_models(folder, TINY)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    qwen3_models(folder, TINY)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    (folder / RECORD).unlink()
    with pytest.raises(ValueError, match="remove it"):
        qwen3_models(folder, TINY)


def test_bfloat16_rounds_as_torch_does() -> None:
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    half_way = (np.arange(0x3F80, 0x4080, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    values = np.concatenate([values, half_way, -half_way])
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    np.testing.assert_array_equal(bfloat16(values).view(np.int16), expected)


def test_a_process_is_measured_without_its_parent() -> None:
    ballast = bytearray(300_000_000)
    ballast[::4096] = b"1" * len(ballast[::4096])  # resident here, and not there
    use = "x = bytearray(50_000_000); x[::4096] = b'1' * len(x[::4096])"
    usage, _ = measured([sys.executable, "-c", f"{use}; import time; time.sleep(0.5)"])
    assert 50 < usage.peak_anonymous_mb <= usage.peak_mb < 150
    assert usage.wall_s > 0.5 > usage.cpu_s
    del ballast


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(Failed, match="no such thing") as caught:
        measured([sys.executable, "-c", "import sys; print('a'); sys.exit('no such thing')"])
    assert caught.value.status == 1


def test_a_file_out_of_the_cache_is_whole_when_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    content = np.random.default_rng(0).bytes(5_000_001)
    file.write_bytes(content)
    drop_from_cache([file])
    assert file.read_bytes() == content


def test_direct_reads_reach_every_byte(tmp_path: Path) -> None:
    import direct_read

    file = tmp_path / "file"
    file.write_bytes(bytes(2 * direct_read.BLOCK + 12_345))
    command = [sys.executable, direct_read.__file__, str(file), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == direct_read.REFUSED:
        assert "refuses O_DIRECT" in done.stderr
    else:
        assert int(done.stdout) == 2 * file.stat().st_size


def with_peers(report: dict[str, Any]) -> dict[str, Any]:
    """The report as if mergekit had run linear and failed at ties."""
    tiny = report["tiny"]
    mine = next(one for one in tiny["warm"] if (one["tool"], one["what"]) == ("ours", "linear"))
    slow = mine["median"] | {"wall_s": 10 * mine["median"]["wall_s"]}
    peer = [
        {"tool": "mergekit", "what": "linear", "median": slow, "runs": [slow]},
        {"tool": "mergekit", "what": "ties", "failed": "KeyError: 'x'"},
    ]
    return {"qwen3": tiny | {"warm": [*tiny["warm"], *peer]}}


def test_the_page_shows_every_method_and_keeps_its_text(
    report: dict[str, Any], tmp_path: Path
) -> None:
    text = f"before\n{page.BEGIN}\nstale\n{page.END}\nafter\n"
    (tmp_path / page.PAGE).write_text(text)
    page.write_docs(with_peers(report), tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written = first[page.PAGE].decode()
    assert written.startswith(f"before\n{page.BEGIN}\n### The shape of Qwen3")
    assert written.endswith(f"\n{page.END}\nafter\n")
    assert "stale" not in written
    assert re.search(r"^\| `linear` \| [\d.]+ \| [\d.]+ \(10\.0\) \| [\d.]+ \|$", written, re.M)
    assert re.search(r"^\| `ties` \| [\d.]+ \| – \| [\d.]+ \|$", written, re.M)
    assert "mergekit failed at ties: KeyError: 'x'" in written
    ElementTree.fromstring(first[page.PICTURE])
    page.write_docs(with_peers(report), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_the_page_of_the_docs_shows_the_results_that_are_kept(tmp_path: Path) -> None:
    docs = ROOT / "docs" / page.PAGE
    (tmp_path / page.PAGE).write_text(docs.read_text())
    report = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text())
    page.write_docs(report, tmp_path)
    assert (tmp_path / page.PAGE).read_text() == docs.read_text()
