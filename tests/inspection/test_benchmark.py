"""The benchmark of inspections works end to end, on tiny models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCHMARK = ROOT / "benchmarks" / "inspection.py"


def test_the_benchmark_measures_reading_and_inspecting(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    options = ["--tiny", "--runs", "1", "--cold-runs", "1", "--data", tmp_path]
    command = [sys.executable, BENCHMARK, *options, "--results", results]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    found = json.loads(results.read_text())["tiny"]
    assert found["bytes"] == sum(f.stat().st_size for f in tmp_path.rglob("*.safetensors"))
    for kind in ("warm", "warm, again", "cold"):
        assert 0 < found[kind]["read_s"] < found[kind]["wall_s"]
        assert 0 < found[kind]["peak_anonymous_mb"] < found[kind]["peak_mb"] < 500


def test_the_page_shows_what_was_measured() -> None:
    page = (ROOT / "docs" / "inspect.md").read_text()
    results = json.loads((ROOT / "benchmarks" / "results" / "inspection.json").read_text())
    found = results["qwen3"]
    assert f"load {found['machine']['load']}" in page
    for kind in ("warm", "warm, again", "cold"):
        one = found[kind]
        seconds = [f"{one[key]:.1f} s" for key in ("read_s", "wall_s", "cpu_s")]
        shown = [kind, *seconds, f"{one['times']:.1f}", f"{one['peak_mb']:.0f} MB"]
        assert f"| {' | '.join(shown)} |" in page
