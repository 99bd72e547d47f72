"""Mined negatives: the right ones, whatever the blocks, and found once for the same content."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import xxhash
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny_models import WORDS, build_minilm, build_qwen3, perturb

from mergekit_embed.cli.train import train
from mergekit_embed.errors import NonFiniteError, OutputError
from mergekit_embed.rows import Ranked
from mergekit_embed.train import mined_file, mining, nearest
from mergekit_embed.train.bags import members
from mergekit_embed.train.data import Dataset, open_dataset
from mergekit_embed.train.examples import Examples
from mergekit_embed.train.mining import mine_all, mined, mined_before
from mergekit_embed.train.plan import load
from mergekit_embed.train.progress import Silent
from mergekit_embed.train.run import train as run_training
from mergekit_embed.train.specs import TrainingPlan

from .plans import plan_of, rows_of, write_rows

DIMENSION = 6


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("MERGEKIT_EMBED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mined"


def vector(text: str) -> np.ndarray:
    """A direction of few values that follows from the text; upper case does not show in it."""
    seed = xxhash.xxh3_64_intdigest(text.lower().encode())
    return np.random.default_rng(seed).integers(-2, 3, DIMENSION).astype(float)


class Fake:
    """An encoder without a model."""

    loaded = 0
    device = "cpu"

    def __init__(self, folder: Path, pooling: str | None, max_length: int):
        Fake.loaded += 1

    def embed(self, texts: Sequence[str], prompt: str | None, own: str | None) -> np.ndarray:
        found = np.array([vector((prompt or "") + text) for text in texts])
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return (found / np.maximum(lengths, 1e-300)).astype(np.float32)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model that `Fake` stands in for."""
    monkeypatch.setattr(mining, "Encoder", Fake)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    Fake.loaded = 0
    return folder


def opened(
    model: Path, file: Path, kind: str = "retrieval", mine: Any = None, **more: Any
) -> tuple[Dataset, TrainingPlan]:
    entry = {"path": str(file), "kind": kind, "mine": mine or {}, **more}
    plan = load({"model": str(model), "data": {"a": entry}, "members": [100]})
    return open_dataset(plan.datasets["a"], plan.source.folders), plan


# --- the definition, written again ----------------------------------------------------------------


def cosine(left: str, right: str) -> np.float32:
    a, b = (v / max(np.linalg.norm(v), 1e-300) for v in (vector(left), vector(right)))
    return np.float32(a.astype(np.float32).astype(float) @ b.astype(np.float32).astype(float))


def expected(
    rows: Iterable[dict[str, Any]], kind: str, top: int, keep: int, below: float
) -> list[list[str]]:
    """The mined negatives of every row, one row and one document at a time."""
    rows = list(rows)
    documents = {text for row in rows for text in (*row["pos"], *row["neg"])}
    found = []
    for row in rows:
        query = row["query"]
        alike = [other for other in rows if other["query"] == query]
        answers = {text for other in alike for text in other["pos"]}
        out = answers | {text for other in alike for text in other["neg"]} | {query}
        if kind == "pair":
            out |= {other["query"] for other in rows if query in other["pos"]}
        limit = float(min(cosine(query, text) for text in answers))
        limit -= (1 - below) * abs(limit)
        ranked = sorted(
            documents - out,
            key=lambda text: (-cosine(query, text), xxhash.xxh3_64_intdigest(text.encode())),
        )
        found.append([t for t in ranked[:top] if float(cosine(query, t)) < limit][:keep])
    return found


TEXTS = [f"{word} {number}" for number in range(4) for word in ("lake", "Lake", "road", "tree")]


@st.composite
def data(draw: st.DrawFn) -> list[dict[str, Any]]:
    texts = st.sampled_from(TEXTS)
    row = st.fixed_dictionaries(
        {
            "query": texts,
            "pos": st.lists(texts, min_size=1, max_size=3),
            "neg": st.lists(texts, max_size=2),
        }
    )
    return draw(st.lists(row, min_size=1, max_size=12))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=data(),
    kind=st.sampled_from(["retrieval", "pair"]),
    top=st.integers(1, 20),
    keep=st.integers(1, 8),
    below=st.sampled_from([0.5, 0.95, 1.0, 1.3]),
    blocks=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7)),
)
def test_every_row_gets_what_the_definition_says(
    rows: list[dict[str, Any]],
    kind: str,
    top: int,
    keep: int,
    below: float,
    blocks: tuple[int, int, int],
    fake: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep = min(keep, top)
    monkeypatch.setattr(nearest, "QUERIES", blocks[0])
    monkeypatch.setattr(nearest, "DOCUMENTS", blocks[1])
    monkeypatch.setattr(mining, "CHUNK", blocks[2])
    file = write_rows(tmp_path / "a.jsonl", rows)
    mine = {"top": top, "keep": keep, "below": below}
    dataset, plan = opened(fake, file, kind, mine, negatives=5)
    found = mined(dataset, plan)
    wanted = expected(rows, kind, top, keep, below)
    counts = []
    for number, (row, negatives) in enumerate(zip(rows, wanted, strict=True)):
        told = found[number]
        assert isinstance(told, Ranked)
        assert told.query == row["query"]
        assert told.positives == tuple(row["pos"])
        assert told.negatives == (*row["neg"], *negatives)
        counts.append(len(told.negatives))
    assert found.negatives == min(5, max(counts))
    assert found.short == sum(count < found.negatives for count in counts)


def test_no_positive_is_mined_under_any_of_a_querys_rows(fake: Path, tmp_path: Path) -> None:
    rows = [
        {"query": "q", "pos": ["one"]},
        {"query": "q", "pos": ["two"]},
        {"query": "other", "pos": ["two", "q"], "neg": ["three"]},
    ]
    file = write_rows(tmp_path / "a.jsonl", rows)
    dataset, plan = opened(fake, file, mine={"below": 2.0})
    found = mined(dataset, plan)
    for number in (0, 1):
        row = found[number]
        assert isinstance(row, Ranked)
        assert not {"one", "two", "q"} & set(row.negatives)


def test_the_order_of_rows_does_not_show(fake: Path, tmp_path: Path) -> None:
    rows = rows_of("retrieval", 40, negatives=1)
    told = []
    for name, some in (("a", rows), ("b", rows[::-1])):
        dataset, plan = opened(fake, write_rows(tmp_path / f"{name}.jsonl", some))
        found = mined(dataset, plan)
        told.append({row.query: row.negatives for row in map(found.__getitem__, range(40))})  # type: ignore[union-attr]
    assert told[0] == told[1]
    assert Fake.loaded == 2


def test_prompts_are_those_of_the_plan(fake: Path, tmp_path: Path) -> None:
    class Spying(Fake):
        seen: ClassVar[set[tuple[str | None, str | None]]] = set()

        def embed(self, texts: Sequence[str], prompt: str | None, own: str | None) -> np.ndarray:
            self.seen.add((prompt, own))
            return super().embed(texts, prompt, own)

    file = write_rows(tmp_path / "a.jsonl", rows_of("retrieval", 5))
    prompt = {"query": "ask ", "document": ""}
    for kind, options, seen in (
        ("retrieval", {}, {(None, "query"), (None, "document")}),
        ("retrieval", {"prompt": prompt}, {("ask ", "query"), ("", "document")}),
        ("pair", {"prompt": prompt}, {("ask ", None)}),
        ("pair", {}, {(None, None)}),
    ):
        Spying.seen = set()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mining, "Encoder", Spying)
            mined(*opened(fake, file, kind, **options))
        assert Spying.seen == seen


# --- the cache ------------------------------------------------------------------------------------


def test_the_same_content_is_mined_once(fake: Path, tmp_path: Path, cache: Path) -> None:
    rows = rows_of("retrieval", 30)
    dataset, plan = opened(fake, write_rows(tmp_path / "a.jsonl", rows))
    assert mined_before(dataset, plan) is dataset
    first = mined(dataset, plan)
    assert first.digest == dataset.digest
    assert first.mined is not None
    again, plan = opened(fake, write_rows(tmp_path / "moved.jsonl", rows))
    for found in (mined(again, plan), mined_before(again, plan)):
        assert [found[i] for i in range(30)] == [first[i] for i in range(30)]
        assert found.mined is not None
        assert found.mined.key == first.mined.key
    assert Fake.loaded == 1
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    ["rows", "weights", "top", "keep", "below", "prompt", "kind", "max_length"],
)
def test_other_content_is_mined_anew(change: str, fake: Path, tmp_path: Path, cache: Path) -> None:
    rows = rows_of("retrieval", 30)
    file = write_rows(tmp_path / "a.jsonl", rows)
    mined(*opened(fake, file))
    mine = (
        {change: {"top": 9, "keep": 3, "below": 0.5}[change]} if change in "top keep below" else {}
    )
    more: dict[str, Any] = {"prompt": {"query": "x"}} if change == "prompt" else {}
    if change == "rows":
        write_rows(file, rows[:-1])
    elif change == "weights":
        (fake / "config.json").write_text("{ }")
    dataset, plan = opened(fake, file, "pair" if change == "kind" else "retrieval", mine, **more)
    if change == "max_length":
        data = {"a": {"path": str(file), "kind": "retrieval", "mine": {}}}
        plan = load({"model": str(fake), "data": data, "training": {"max_length": 7}})
    assert mined_before(dataset, plan) is dataset
    mined(dataset, plan)
    assert Fake.loaded == 2
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_broken_file_is_made_again(damage: str, fake: Path, tmp_path: Path, cache: Path) -> None:
    dataset, plan = opened(fake, write_rows(tmp_path / "a.jsonl", rows_of("retrieval", 30)))
    whole = mined(dataset, plan)
    (file,) = cache.iterdir()
    raw = file.read_bytes()
    broken = {
        "cut": raw[:-9],
        "flipped": raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:],
        "empty": b"",
        "other": b"\0" * 4096,
    }[damage]
    file.write_bytes(broken)
    assert mined_before(dataset, plan) is dataset
    again = mined(dataset, plan)
    assert [again[i] for i in range(30)] == [whole[i] for i in range(30)]
    assert file.read_bytes() == raw
    assert Fake.loaded == 2


def test_a_cache_that_cannot_be_written_is_told(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("MERGEKIT_EMBED_CACHE", str(tmp_path / "taken"))
    dataset, plan = opened(fake, write_rows(tmp_path / "a.jsonl", rows_of("retrieval", 3)))
    with pytest.raises(OutputError, match="set MERGEKIT_EMBED_CACHE to a folder that can"):
        mined(dataset, plan)


def test_an_encoder_that_is_not_there_has_mined_nothing(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", rows_of("retrieval", 3))
    for model in (tmp_path / "none", Path("nobody/nothing")):
        dataset, plan = opened(model, file)
        assert mined_before(dataset, plan) is dataset


def test_what_does_not_ask_for_it_comes_back_as_it_is(fake: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", rows_of("sts", 3))
    plan = plan_of({"a": {"path": str(file), "kind": "sts"}})
    dataset = open_dataset(plan.datasets["a"])
    assert mine_all({"a": dataset}, plan) == {"a": dataset}


# --- in training ----------------------------------------------------------------------------------


def test_bags_stay_and_examples_have_what_was_mined(fake: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", rows_of("retrieval", 50))
    dataset, plan = opened(fake, file, mine={"keep": 3, "below": 2.0}, negatives=3)
    found = mine_all({"a": dataset}, plan)
    (before,), (member,) = members(plan, {"a": dataset}), members(plan, found)
    assert np.array_equal(before.rows["a"], member.rows["a"])
    example = Examples(found["a"], member, 0)[7]
    row = found["a"][7]
    assert isinstance(row, Ranked)
    assert len(row.negatives) == 3
    assert {example[f"negative_{i}"] for i in (1, 2, 3)} == set(row.negatives)
    assert pickle.loads(pickle.dumps(found["a"]))[7] == row


def test_what_is_no_number_is_told(tmp_path: Path) -> None:
    model = build_minilm(tmp_path / "model", 0)
    tensors = load_file(model / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][:] = np.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    dataset, plan = opened(model, write_rows(tmp_path / "a.jsonl", rows_of("retrieval", 3)))
    with pytest.raises(NonFiniteError, match="embeds a text as what is no number"):
        mined(dataset, plan)


@pytest.mark.parametrize("layout", ["whole", "bare decoder"])
def test_a_real_model_measures_as_sentence_transformers_does(layout: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, 6)) for _ in range(60)]
    rows = [{"query": texts[i], "pos": [texts[30 + i]], "neg": []} for i in range(30)]
    file = write_rows(tmp_path / "a.jsonl", rows)
    if layout == "whole":
        model = build_minilm(tmp_path / "model", 0, prompts={"query": "find ", "document": ""})
    else:
        whole = build_qwen3(tmp_path / "whole", 0, normalize=False, prompts={})
        model = perturb(whole, tmp_path / "model", 1)
        (model / "modules.json").unlink()
        (model / "config_sentence_transformers.json").unlink()
    data = {"a": {"path": str(file), "kind": "retrieval", "mine": {"keep": 5}}}
    pooling = {} if layout == "whole" else {"pooling": "last"}
    plan = load({"model": str(model), "data": data, **pooling})
    found = mined(open_dataset(plan.datasets["a"]), plan)
    if layout == "whole":
        encoder = SentenceTransformer(str(model), device="cpu")
    else:
        encoder = SentenceTransformer(
            str(perturb(tmp_path / "whole", tmp_path / "other", 1)), device="cpu"
        )
    queries = encoder.encode_query(texts[:30], normalize_embeddings=True).astype(float)
    documents = encoder.encode_document(texts[30:], normalize_embeddings=True).astype(float)
    cosines = queries @ documents.T
    for i in range(30):
        order = [j for j in np.argsort(-cosines[i]) if j != i]
        passing = [j for j in order if cosines[i, j] < 0.95 * cosines[i, i]]
        row = found[i]
        assert isinstance(row, Ranked)
        assert list(row.negatives) == [texts[30 + j] for j in passing[:5]]


def test_a_run_leaves_nothing_but_its_result(fake: Path, tmp_path: Path, cache: Path) -> None:
    dataset, plan = opened(fake, write_rows(tmp_path / "a.jsonl", rows_of("retrieval", 30)))
    mined(dataset, plan)
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


def test_a_dry_run_counts_what_was_mined_and_mines_nothing(
    fake: Path, tmp_path: Path, cache: Path
) -> None:
    file = write_rows(tmp_path / "a.jsonl", rows_of("retrieval", 300))
    entry = f"{{path: {file}, kind: retrieval, mine: {{below: 2.0}}}}"
    (tmp_path / "plan.yaml").write_text(f"model: {fake}\ndata:\n  a: {entry}\nmembers: [100]\n")
    first = CliRunner().invoke(train, [str(tmp_path / "plan.yaml"), "--dry-run"])
    assert "note  a: its negatives are mined first, and not counted here\n" in first.output
    assert not cache.exists()
    plan = load(tmp_path / "plan.yaml")
    mined(open_dataset(plan.datasets["a"]), plan)
    told = CliRunner().invoke(train, [str(tmp_path / "plan.yaml"), "--dry-run"]).output
    assert "data  a   300 rows, retrieval, info_nce, 7 negatives a row\n" in told
    assert "mined" not in told


def test_members_are_trained_on_what_was_mined(tmp_path: Path, cache: Path) -> None:
    model = build_minilm(tmp_path / "model", 0)
    random = np.random.default_rng(0)
    rows = [
        {"query": " ".join(random.choice(WORDS, 4)), "pos": " ".join(random.choice(WORDS, 6))}
        for _ in range(24)
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    notes: list[str] = []

    class Telling(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    def run(name: str, **mine: Any) -> dict[str, Any]:
        entry = {"path": str(tmp_path / "a.jsonl"), "kind": "retrieval", "batch_size": 8, **mine}
        plan = {"model": str(model), "data": {"a": entry}, "members": [100]}
        plan["training"] = {"learning_rate": 1e-3, "precision": "fp32"}
        run_training(plan, tmp_path / name, progress=Telling())
        told: dict[str, Any] = json.loads((tmp_path / name / "training.json").read_text())
        return told

    without = run("without")
    found = run("found", mine={"below": 2.0, "keep": 3})
    assert notes == ["a: hard negatives are mined among 48 texts"]
    assert (without["data"]["a"]["negatives"], found["data"]["a"]["negatives"]) == (0, 3)
    assert found["data"]["a"]["mined"] == next(cache.iterdir()).stem
    prints = [told["members"]["bag-100"]["fingerprint"] for told in (without, found)]
    assert prints[0] != prints[1]
    assert without["data"]["a"]["digest"] == found["data"]["a"]["digest"]
    assert found["cost"]["tokens"] > 1.5 * without["cost"]["tokens"]
    run("found", mine={"below": 2.0, "keep": 3})
    assert len(notes) == 1


def test_the_command_mines_and_stops(fake: Path, tmp_path: Path, cache: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", rows_of("retrieval", 30))
    entry = f"{{path: {file}, kind: retrieval, mine: {{below: 2.0}}}}"
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"model: {fake}\ndata:\n  a: {entry}\n  b: {{path: {file}, kind: pair}}\n")
    for _ in range(2):
        ran = CliRunner().invoke(train, [str(plan), "--mine"])
        assert (ran.exit_code, ran.stdout) == (0, "a   30 rows, 7 negatives a row\n")
    assert len(list(cache.iterdir())) == Fake.loaded == 1
    told = json.loads(CliRunner().invoke(train, [str(plan), "--mine", "--json"]).stdout)
    assert told["data"] == {"a": {"rows": 30, "negatives": 7, "fewer": 0}}
    plan.write_text(f"model: {fake}\ndata:\n  b: {{path: {file}, kind: pair}}\n")
    ran = CliRunner().invoke(train, [str(plan), "--mine"])
    assert ran.stdout == "no data set of the plan has `mine`\n"


def test_a_user_without_a_home_is_told_to_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mined_file, "cache_folder", lambda name: None)
    with pytest.raises(OutputError, match="set MERGEKIT_EMBED_CACHE to a folder"):
        mined_file.read("key", 1)
