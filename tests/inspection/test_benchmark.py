"""The benchmark of inspections works end to end, on tiny models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "inspection.py"


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
