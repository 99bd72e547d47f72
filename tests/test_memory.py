"""Memory does not grow with the size of a tensor, and what is kept is bounded for all workers."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import pytest
from tensor_folders import write_folder

import mergekit_embed
from mergekit_embed.cli.console import bytes_from
from mergekit_embed.engine.memory import Memory, Stopped

ROWS, COLUMNS = 150_000, 1000
LIMIT = 700 * 10**6


def _write_table(path: Path, seed: int) -> Path:
    """A model that is one float32 embedding table of 600 MB."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    size = ROWS * COLUMNS * 4
    entry = {"dtype": "F32", "shape": [ROWS, COLUMNS], "data_offsets": [0, size]}
    header = json.dumps({"embeddings.word_embeddings.weight": entry}).encode()
    generator = np.random.default_rng(seed)
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _ in range(100):
            file.write(generator.standard_normal(size // 400, dtype=np.float32).tobytes())
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("tables")
    return [_write_table(root / f"m{seed}", seed) for seed in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        {"merge_method": "linear"},
        {"merge_method": "multislerp", "base": True},
        {"merge_method": "ties", "base": True, "parameters": {"density": 0.2}},
        {"merge_method": "delta_guided", "base": True, "granularity": "row"},
    ],
    ids=lambda recipe: recipe["merge_method"],
)
def test_four_members_with_a_table_of_600_mb_merge_in_700_mb(
    recipe: dict[str, object], tables: list[Path], tmp_path: Path
) -> None:
    recipe = {**recipe, "models": [{"model": str(path)} for path in tables[:4]]}
    if recipe.pop("base", False):
        recipe["base_model"] = str(tables[4])
    (tmp_path / "big.yaml").write_text(json.dumps(recipe))
    command = "from mergekit_embed.cli.merge import main; main()"
    arguments = [sys.executable, "-c", command, str(tmp_path / "big.yaml"), "--json"]
    finished = subprocess.run(
        [*arguments, "-o", str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    told = json.loads(finished.stdout)
    assert told["bytes_in"] == (len(tables) if "base_model" in recipe else 4) * ROWS * COLUMNS * 4
    assert told["peak_memory"] < LIMIT
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert size > ROWS * COLUMNS * 4
    (tmp_path / "out" / "model.safetensors").unlink()  # 600 MB each, and pytest keeps folders


@pytest.mark.slow
def test_tables_in_another_order_merge_in_700_mb(tables: list[Path], tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(ROWS)]
    members = []
    for index, table in enumerate(tables[:3]):
        member = tmp_path / f"m{index}"
        member.mkdir()
        (member / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": ROWS}))
        (member / "model.safetensors").symlink_to(table / "model.safetensors")
        order = np.random.default_rng(index).permutation(ROWS) if index else np.arange(ROWS)
        vocabulary = {words[number]: place for place, number in enumerate(order.tolist())}
        if index == 2:  # a row that others lack, and for which they take two members' mean
            vocabulary["new"] = vocabulary.pop("word7")
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "word0"}
        content = {"model": model, "added_tokens": [], "normalizer": None, "pre_tokenizer": None}
        (member / "tokenizer.json").write_text(json.dumps(content))
        members.append({"model": str(member)})
    recipe = {"merge_method": "linear", "models": members, "tokenizer_source": "union"}
    (tmp_path / "big.yaml").write_text(json.dumps(recipe))
    command = "from mergekit_embed.cli.merge import main; main()"
    arguments = [sys.executable, "-c", command, str(tmp_path / "big.yaml"), "--json"]
    finished = subprocess.run(
        [*arguments, "-o", str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    told = json.loads(finished.stdout)
    assert told["peak_memory"] < LIMIT
    written = tmp_path / "out" / "model.safetensors"
    assert written.stat().st_size > (ROWS + 1) * COLUMNS * 4
    written.unlink()


def test_no_more_is_lent_than_there_is() -> None:
    memory, stop, lock = Memory(100), threading.Event(), threading.Lock()
    lent: list[int] = [0]
    most: list[int] = []

    def borrow(wanted: int) -> bool:
        with memory.lent(wanted, stop) as given:
            with lock:
                lent[0] += wanted * given
                most.append(lent[0])
            time.sleep(0.001)
            with lock:
                lent[0] -= wanted * given
        return given

    wanted = np.random.default_rng(0).integers(1, 121, 200).tolist()
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(borrow, wanted))
    assert given == [size <= 100 for size in wanted]
    assert 50 < max(most) <= 100
    assert lent == [0]


def test_who_waits_for_memory_gives_up_with_the_others() -> None:
    memory, stop = Memory(100), threading.Event()
    with memory.lent(60, stop), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(memory.lent(60, stop).__enter__)
        stop.set()
        with pytest.raises(Stopped):
            waiting.result(timeout=10)
    with memory.lent(100, threading.Event()) as given:
        assert given


@pytest.mark.slow
def test_a_grid_over_models_of_90_mb_reads_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though every threshold needs a pass of its own over the largest tensor."""
    monkeypatch.chdir(tmp_path)
    tables = {"embeddings.word_embeddings.weight": (30522, 384)}
    tables |= {f"encoder.layer.{i}.output.dense.weight": (384, 1536) for i in range(12)}
    for seed in range(5):
        generator = np.random.default_rng(seed)
        model = {
            name: generator.standard_normal(shape, np.float32) for name, shape in tables.items()
        }
        write_folder(Path(f"m{seed}"), model, "F32")
    sweep = {"density": [0.2, 0.5], "lambda": [0.8, 1.0]}
    models = [{"model": f"m{seed}"} for seed in range(1, 5)]
    recipe = {"merge_method": "ties", "base_model": "m0", "models": models, "sweep": sweep}
    results = mergekit_embed.merge_many(recipe, "all")
    assert len(results) == 4
    assert results[0].bytes_read == results[0].bytes_in
    shutil.rmtree("all")


@pytest.mark.parametrize(
    ("written", "size"),
    [("512MB", 512 * 10**6), ("2 gb", 2 * 10**9), ("1.5GiB", 3 * 2**29), ("1000", 1000)],
)
def test_sizes_are_read_as_people_write_them(written: str, size: int) -> None:
    context = click.Context(click.Command("merge"))
    assert bytes_from(context, click.Option(["--memory"]), written) == size


@pytest.mark.parametrize("written", ["much", "-1GB", "1XB", "1iB", ""])
def test_what_is_no_size_is_refused(written: str) -> None:
    context = click.Context(click.Command("merge"))
    with pytest.raises(click.BadParameter, match="is no size; write 512MB or 2GB"):
        bytes_from(context, click.Option(["--memory"]), written)


@pytest.mark.slow
def test_a_budget_for_memory_is_kept_and_what_is_too_little_refused(
    tables: list[Path], tmp_path: Path
) -> None:
    """Two passes over 600 MB tables, of which 800 MB more would be kept if they were allowed."""
    recipe = {
        "merge_method": "multislerp",
        "base_model": str(tables[2]),
        "models": [{"model": str(path)} for path in tables[:2]],
    }
    (tmp_path / "big.yaml").write_text(json.dumps(recipe))
    command = "from mergekit_embed.cli.merge import main; main()"
    arguments = [sys.executable, "-c", command, str(tmp_path / "big.yaml")]
    refused = subprocess.run([*arguments, "--memory", "50MB"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "of memory; 50 MB were allowed" in refused.stderr
    arguments += ["-o", str(tmp_path / "out"), "--json", "--memory"]
    finished = subprocess.run([*arguments, "300MB"], capture_output=True, text=True, check=True)
    assert json.loads(finished.stdout)["peak_memory"] < 300 * 10**6
    (tmp_path / "out" / "model.safetensors").unlink()
