"""Training members: what is written, what it depends on, and what is not trained again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from tiny_models import build_qwen3
from tokenizers import Tokenizer

import mergekit_embed
from mergekit_embed.engine.staging import held
from mergekit_embed.errors import (
    DataError,
    NonFiniteError,
    OutputError,
    OutputExistsError,
    RecipeError,
    UsageError,
)
from mergekit_embed.train import batches
from mergekit_embed.train.bags import members
from mergekit_embed.train.batches import Columns, Key, Order, Rows, steps_of
from mergekit_embed.train.data import open_datasets
from mergekit_embed.train.keeping import point
from mergekit_embed.train.models import prompts
from mergekit_embed.train.plan import load
from mergekit_embed.train.run import TrainingResult, train
from mergekit_embed.train.schedules import walk

from .plans import rows_of, write_rows
from .runs import (
    base_model,
    difference,
    lasting,
    plan,
    record,
    weight_bytes,
    weights,
    write_data,
)

TEXTS = ["the quick brown fox", "a lazy dog sleeps", "snow in winter"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and data, and a finished training of two bags in `out`."""
    folder = tmp_path_factory.mktemp("shared")
    base_model(folder / "base")
    write_data(folder)
    train(plan(folder, members=[50, 100]), folder / "out")
    return folder


@pytest.fixture
def place(shared: Path, tmp_path: Path) -> Path:
    """The base and the data, in the test's own folder."""
    shutil.copytree(shared / "base", tmp_path / "base")
    for file in shared.glob("*.jsonl"):
        shutil.copy(file, tmp_path)
    return tmp_path


@pytest.fixture
def finished(shared: Path, place: Path) -> Path:
    """As `place`, with the finished training."""
    shutil.copytree(shared / "out", place / "out")
    return place


# --- what is written ----------------------------------------------------------------------------


def test_what_a_training_leaves(shared: Path) -> None:
    out = shared / "out"
    names = ["members", "merge.yaml", "plan.yaml", "training.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert sorted(path.name for path in (out / "members").iterdir()) == ["bag-100", "bag-50"]
    assert not list(shared.glob(".*"))


def test_members_are_whole_models_that_have_learnt(shared: Path) -> None:
    base = SentenceTransformer(str(shared / "base"), device="cpu")
    for name in ("bag-50", "bag-100"):
        folder = shared / "out" / "members" / name
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        assert [type(m) for m in model] == [type(m) for m in base]
        assert model.prompts == base.prompts
        assert model.max_seq_length == base.max_seq_length
        assert model.tokenizer.get_vocab() == base.tokenizer.get_vocab()
        assert np.abs(model.encode(TEXTS) - base.encode(TEXTS)).max() > 1e-3


def test_the_recipe_merges_from_anywhere_without_complaints(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = mergekit_embed.merge("../out/merge.yaml", "merged")
    assert (result.members, result.notes) == (2, ())
    assert SentenceTransformer("merged", device="cpu").encode(TEXTS).shape == (3, 32)
    recipe = (finished / "out" / "merge.yaml").read_text()
    assert str(tmp_path) not in recipe
    assert "members/bag-50" in recipe and "../base" in recipe


def test_the_whole_folder_may_be_moved(finished: Path) -> None:
    (finished / "run").mkdir()
    for name in ("out", "base"):
        (finished / name).rename(finished / "run" / name)
    mergekit_embed.merge(finished / "run" / "out" / "merge.yaml", finished / "merged")
    assert (finished / "merged" / "model.safetensors").is_file()


def test_the_plan_beside_the_members_says_the_same_from_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place / "base", place / "encoder")
    write_rows(place / "dev" / "pairs.jsonl", rows_of("sts", 4))
    retrieval = {"path": "q.jsonl", "kind": "retrieval", "negatives": 2}
    mine = {"encoder": "encoder", "below": 2.0}
    given = plan(
        place,
        data={"q": retrieval | {"mine": mine}, "r": retrieval | {"task": "other"}},
        tasks={"other": {"mine": mine}},
        early_stop={"task": "dev", "every": 2},
        merge={"merge_method": "multislerp", "models": [{"model": "encoder"}]},
        weights="equal",
        output="somewhere",
    )
    monkeypatch.setenv("MERGEKIT_EMBED_CACHE", str(place / "cache"))
    train(given, place / "deep" / "out")
    monkeypatch.chdir("/")
    beside = load(place / "deep" / "out" / "plan.yaml")
    assert beside.output is None
    assert beside.model == "../../base"
    assert beside.early_stop is not None
    assert beside.early_stop.task == "../../dev"
    for spec in beside.datasets.values():
        assert spec.path == "../../q.jsonl"
        assert spec.mine is not None
        assert (spec.mine.encoder, spec.mine.below) == ("../../encoder", 2.0)
    assert beside.merge["models"] == [{"model": "../../encoder"}]
    assert train(beside, place / "deep" / "out").trained == ()


def test_a_bare_decoder_pools_as_the_plan_says(place: Path) -> None:
    build_qwen3(place / "whole", seed=1)
    model = SentenceTransformer(str(place / "whole"), device="cpu")
    model[0].model.save_pretrained(place / "decoder")
    model.tokenizer.save_pretrained(place / "decoder")
    wanted = plan(
        place,
        model="./decoder",
        pooling="last",
        members=[50, 100],
        training={"precision": "bf16", "steps": 4},
    )
    result = train(wanted, place / "out", merge=True)
    (note,) = result.merged[0].notes
    assert "has no modules.json; all files but the weights come from members/bag-50" in note
    for folder in ("members/bag-50", "members/bag-100", "merged"):
        found = SentenceTransformer(str(place / "out" / folder), device="cpu")
        assert found[1].pooling_mode == "lasttoken"
        assert found.dtype == torch.float32
    assert difference(weights(place / "out" / "members" / "bag-50"), weights(place / "decoder")) > 0


def test_adapters_are_folded_in_or_kept(place: Path) -> None:
    build_qwen3(place / "decoder", seed=1)
    common: dict[str, Any] = {"model": "./decoder", "members": [60, 100], "training": {"steps": 6}}
    lora = {"r": 3, "alpha": 12, "dropout": 0.1}
    train(plan(place, lora={**lora, "fold": True}, **common), place / "folded", merge=True)
    train(plan(place, lora={**lora, "fold": False}, **common), place / "kept", merge=True)
    before = weights(place / "decoder")
    for name in ("bag-60", "bag-100"):
        adapter = load_file(place / "kept" / "members" / name / "adapter_model.safetensors")
        folded = weights(place / "folded" / "members" / name)
        assert folded.keys() == before.keys()
        for key, weight in before.items():
            down = adapter.get(f"base_model.model.{key.removesuffix('.weight')}.lora_A.weight")
            up = adapter.get(f"base_model.model.{key.removesuffix('.weight')}.lora_B.weight")
            if down is None or up is None:
                assert np.array_equal(folded[key], weight)
            else:
                expected = weight.astype("f8") + 4 * (up.astype("f8") @ down.astype("f8"))
                assert np.abs(folded[key] - expected).max() < 1e-7
                assert np.abs(up).max() > 1e-4
        config = json.loads((place / "kept" / "members" / name / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "decoder"
    assert "../decoder+members/bag-60" in (place / "kept" / "merge.yaml").read_text()
    merged = [weights(place / out / "merged") for out in ("folded", "kept")]
    assert difference(*merged) < 1e-6


def test_merging_at_once_gives_what_merging_later_gives(finished: Path) -> None:
    result = train(plan(finished, members=[50, 100]), finished / "out", merge=True)
    assert result.trained == ()
    assert [one.path for one in result.merged] == [finished / "out" / "merged"]
    mergekit_embed.merge(finished / "out" / "merge.yaml", finished / "later")
    assert difference(weights(finished / "out" / "merged"), weights(finished / "later")) == 0


def test_models_beside_the_members_are_found_from_the_recipe(place: Path) -> None:
    shutil.copytree(place / "base", place / "service")
    merge = {"merge_method": "linear", "models": [{"model": "service"}]}
    train(plan(place, merge=merge, weights="equal", training={"steps": 2}), place / "a" / "out")
    assert "../../service" in (place / "a" / "out" / "merge.yaml").read_text()
    assert mergekit_embed.merge(place / "a" / "out" / "merge.yaml", place / "merged").members == 2


def test_the_record(shared: Path) -> None:
    told = record(shared / "out")
    assert told["model"]["name"] == "../base"
    assert told["data"]["q"]["rows"] == 24
    half = told["members"]["bag-50"]
    assert {name: one["rows"] for name, one in half["rows"].items()} == {"q": 12, "c": 9, "s": 8}
    assert half["steps"] == 12 // 4 + 9 // 6 + 8 // 4
    assert half["examples"] == 12 + 6 + 8
    assert [entry["step"] for entry in half["curve"]] == list(range(1, 7))
    assert told["cost"]["steps"] == half["steps"] + told["members"]["bag-100"]["steps"]
    assert half["tokens"] > 5 * half["examples"]
    assert told["versions"]["torch"] == torch.__version__


def test_tokens_are_those_of_the_texts(shared: Path) -> None:
    loaded = load(plan(shared, members=[50, 100]))
    datasets = open_datasets(loaded)
    half = members(loaded, datasets)[0]
    tokenizer = SentenceTransformer(str(shared / "base"), device="cpu").tokenizer
    rows = Rows(half, datasets, 0)
    counted = sum(
        len(tokenizer(str(text))["input_ids"])
        for keys in Order(loaded, half, datasets, 1)
        for key in keys
        for column, text in rows[key][1].items()
        if column not in {"label", "score"}
    )
    assert record(shared / "out")["members"]["bag-50"]["tokens"] == counted


def test_cards_tell_of_the_training_and_of_no_machine(shared: Path) -> None:
    private = [str(shared), os.environ.get("USER", "no user"), str(Path.home())]
    for path in (shared / "out" / "members").rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            assert not [name for name in private if len(name) > 5 and name.encode() in raw], path
    card = (shared / "out" / "members" / "bag-50" / "README.md").read_text()
    assert "bag-50, trained from base" in card
    assert "InfoNCELoss" in card and "learning_rate" in card
    assert "query 1" not in card and "text 1" not in card  # texts of the data


def test_the_rate_rises_and_falls_as_the_plan_says(shared: Path) -> None:
    curve = record(shared / "out")["members"]["bag-100"]["curve"]
    steps, warm = len(curve), 2  # a tenth of 13 steps, rounded up
    for entry in curve:
        done = entry["step"] - 1
        wanted = done / warm if done < warm else (steps - done) / (steps - warm)
        assert entry["learning_rate"] == pytest.approx(1e-3 * wanted)


# --- what it depends on -------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(shared: Path, place: Path) -> None:
    train(plan(place, members=[50, 100]), place / "again")
    assert weight_bytes(place / "again") == weight_bytes(shared / "out")
    told, before = record(place / "again"), record(shared / "out")
    for name in ("bag-50", "bag-100"):
        assert lasting(told["members"][name]) == lasting(before["members"][name])


def test_another_seed_gives_others(shared: Path, place: Path) -> None:
    train(plan(place, seed=1), place / "other")
    other = weights(place / "other" / "members" / "bag-100")
    assert difference(other, weights(shared / "out" / "members" / "bag-100")) > 1e-4


def test_a_finished_member_is_not_trained_again(finished: Path) -> None:
    before = weight_bytes(finished / "out")
    times = {path: path.stat().st_mtime_ns for path in (finished / "out" / "members").rglob("*")}
    assert train(plan(finished, members=[50, 100]), finished / "out").trained == ()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert weight_bytes(finished / "out") == before


def test_a_new_member_is_trained_beside_finished_ones(finished: Path) -> None:
    result = train(plan(finished, members=[20, 50, 100]), finished / "out")
    assert result.trained == ("bag-20",)
    assert list(record(finished / "out")["members"]) == ["bag-20", "bag-50", "bag-100"]
    assert "members/bag-20" in result.recipe.read_text()


def test_what_counts_for_the_merge_alone_trains_nothing(finished: Path) -> None:
    changed = plan(
        finished,
        members=[50, {"ratio": 100, "weight": 3.0}],
        weights="equal",
        merge={"merge_method": "linear"},
        training={"save_every": 3},
    )
    assert train(changed, finished / "out").trained == ()
    assert "linear" in (finished / "out" / "merge.yaml").read_text()


def _more_epochs(folder: Path) -> dict[str, Any]:
    return {"training": {"epochs": 2}}


def _other_base(folder: Path) -> dict[str, Any]:
    shutil.rmtree(folder / "base")
    base_model(folder / "base", dropout=0.0)
    return {}


def _other_negatives(folder: Path) -> dict[str, Any]:
    rows = rows_of("retrieval", 24, 3)
    rows[0]["neg"][0] = "something else"
    write_rows(folder / "q.jsonl", rows)
    return {}


@pytest.mark.parametrize("change", [_more_epochs, _other_base, _other_negatives])
def test_a_changed_plan_base_or_row_trains_anew(
    finished: Path, change: Callable[[Path], dict[str, Any]]
) -> None:
    changes = change(finished)
    result = train(plan(finished, members=[50, 100], **changes), finished / "out")
    assert result.trained == ("bag-50", "bag-100")


def test_only_members_of_changed_data_are_trained_anew(place: Path) -> None:
    wanted = plan(place, members=[{"each": "dataset"}], training={"steps": 2})
    assert train(wanted, place / "out").trained == ("q", "c", "s")
    write_rows(place / "s.jsonl", rows_of("sts", 18))
    assert train(wanted, place / "out").trained == ("s",)


def test_a_missing_model_is_trained_anew_and_restart_trains_all(finished: Path) -> None:
    wanted = plan(finished, members=[50, 100])
    shutil.rmtree(finished / "out" / "members" / "bag-50")
    assert train(wanted, finished / "out").trained == ("bag-50",)
    assert train(wanted, finished / "out", restart=True).trained == ("bag-50", "bag-100")


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["batch_shuffled", "row_shuffled"])
def test_the_trainer_sees_the_batches_of_the_schedule(
    place: Path, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Key] = []
    read = Rows.__getitem__

    def noted(self: Rows, key: Key) -> Any:
        seen.append(key)
        return read(self, key)

    monkeypatch.setattr(batches.Rows, "__getitem__", noted)
    wanted = plan(place, schedule=schedule, training={"epochs": 2})
    train(wanted, place / "out")
    loaded = load(wanted)
    datasets = open_datasets(loaded)
    (member,) = members(loaded, datasets)
    expected = [
        Key(epoch, name, number)
        for epoch, batch in walk(loaded, member, datasets)
        for name, number in batch.rows()
    ]
    assert seen == expected


@pytest.mark.parametrize("schedule", ["batch_shuffled", "row_shuffled", "size_power"])
@pytest.mark.parametrize("length", [{"epochs": 3}, {"steps": 7}, {"steps": 40}])
def test_the_number_of_steps_is_known_before(
    shared: Path, schedule: str, length: dict[str, int]
) -> None:
    loaded = load(plan(shared, "steps", schedule=schedule, training=length))
    datasets = open_datasets(loaded)
    (member,) = members(loaded, datasets)
    order = Order(loaded, member, datasets, 2)
    assert steps_of(loaded, member, datasets) == sum(1 for _ in walk(loaded, member, datasets))
    assert len(order) == len(list(order)) == 2 * steps_of(loaded, member, datasets)


def test_pieces_of_a_batch_follow_each_other(shared: Path) -> None:
    loaded = load(plan(shared))
    datasets = open_datasets(loaded)
    (member,) = members(loaded, datasets)
    whole = list(Order(loaded, member, datasets, 1))
    halves = list(Order(loaded, member, datasets, 2))
    assert [a + b for a, b in zip(halves[::2], halves[1::2], strict=True)] == whole


@pytest.fixture(scope="module")
def base(shared: Path) -> SentenceTransformer:
    return SentenceTransformer(str(shared / "base"), device="cpu")


def test_features_are_those_of_sentence_transformers(
    shared: Path, base: SentenceTransformer
) -> None:
    loaded = load(plan(shared))
    datasets = open_datasets(loaded)
    (member,) = members(loaded, datasets)
    said = {name: {"anchor": "query: ", "sentence2": "b: "} for name in datasets}
    columns = Columns(base.preprocess, datasets, said, dict.fromkeys(datasets, "loss"))
    rows = Rows(member, datasets, 0)
    theirs = SentenceTransformerDataCollator(base.preprocess, prompts=said["q"])
    for name in datasets:
        examples = [rows[Key(0, name, number)] for number in range(4)]
        found = columns(examples)
        expected = theirs([{**example, "dataset_name": name} for _, example in examples])
        assert found.pop("dataset_name") == "loss" and expected.pop("dataset_name") == name
        assert list(found) == list(expected)
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(found[key], value), key
            else:
                assert found[key] == value, key


def test_rows_of_several_data_sets_each_get_their_prompt(
    shared: Path, base: SentenceTransformer
) -> None:
    entries = {
        "one": {"path": "q.jsonl", "kind": "retrieval", "negatives": 1, "prompt": {"query": "a "}},
        "two": {"path": "q.jsonl", "kind": "retrieval", "negatives": 1, "prompt": {"query": "b "}},
    }
    loaded = load(plan(shared, "prompts", data=entries))
    datasets = open_datasets(loaded)
    (member,) = members(loaded, datasets)
    said = {name: prompts(base, dataset) for name, dataset in datasets.items()}
    rows = Rows(member, datasets, 0)
    chosen = [rows[Key(0, "one", 3)], rows[Key(0, "two", 5)]]
    found = Columns(base.preprocess, datasets, said, dict.fromkeys(datasets, "x"))(chosen)
    expected = base.preprocess(["a query 3", "b query 5"])
    assert torch.equal(found["anchor_input_ids"], expected["input_ids"])


def test_what_the_plan_leaves_out_is_the_models_own_prompt(
    shared: Path, base: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"query": "q: ", "document": "d: ", "plain": "p: "}
    monkeypatch.setattr(base, "prompts", own)
    monkeypatch.setattr(base, "default_prompt_name", "plain")
    loaded = load(plan(shared, "own"))
    found = {name: prompts(base, dataset) for name, dataset in open_datasets(loaded).items()}
    assert found["q"]["anchor"] == "q: " and found["q"]["positive"] == "d: "
    assert set(found["c"].values()) == set(found["s"].values()) == {"p: "}


def test_texts_are_cut_in_training_and_not_in_the_member(place: Path) -> None:
    train(plan(place, training={"max_length": 4, "steps": 3}), place / "out")
    told = record(place / "out")["members"]["bag-100"]
    assert told["tokens"] <= 4 * 4 * told["examples"]
    folder = str(place / "out" / "members" / "bag-100")
    assert SentenceTransformer(folder, device="cpu").max_seq_length == 64


@pytest.mark.parametrize(
    "cut", [None, {"max_length": 40, "stride": 0, "strategy": "longest_first", "direction": "left"}]
)
def test_the_tokenizer_is_stored_as_it_was(cut: dict[str, Any] | None, place: Path) -> None:
    """Not with the length that training has cut to, nor padding to the longest of a batch."""
    file = place / "base" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if cut is not None:
        tokenizer.enable_truncation(**cut)
        tokenizer.enable_padding(length=7)
    tokenizer.save(str(file))
    train(plan(place, training={"max_length": 8}), place / "out")
    written = Tokenizer.from_file(str(place / "out" / "members" / "bag-100" / "tokenizer.json"))
    assert written.truncation == tokenizer.truncation
    assert written.padding == tokenizer.padding
    assert written.get_vocab() == tokenizer.get_vocab()


def test_gradients_in_pieces_train_the_same(place: Path) -> None:
    base_model(place / "still", dropout=0.0)
    losses = {"retrieval": {"loss": {"name": "info_nce", "parameters": {"mini_batch_size": 2}}}}
    train(plan(place, model="./still", training={"steps": 6}), place / "whole")
    train(plan(place, model="./still", tasks=losses, training={"steps": 6}), place / "pieces")
    whole, pieces = (weights(place / out / "members" / "bag-100") for out in ("whole", "pieces"))
    assert difference(whole, pieces) < 1e-5 < difference(whole, weights(place / "still"))


# --- which weights are kept ---------------------------------------------------------------------


@pytest.fixture
def after_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, np.ndarray]]]:
    """The weights after every step of what is trained in the test."""
    from mergekit_embed.train.trainer import MemberTrainer

    found: list[dict[str, np.ndarray]] = []
    begin = MemberTrainer.train

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        from transformers import TrainerCallback

        class Watch(TrainerCallback):
            def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
                state = model[0].model.state_dict()
                found.append({name: tensor.double().numpy() for name, tensor in state.items()})

        self.add_callback(Watch())
        return begin(self, *args, **kwargs)

    monkeypatch.setattr(MemberTrainer, "train", watched)
    yield found


def test_checkpoints_are_the_weights_after_their_steps(
    place: Path, after_steps: list[dict[str, np.ndarray]]
) -> None:
    member = {"ratio": 100, "checkpoints": [1, 60, 100]}
    train(plan(place, members=[member]), place / "out")
    assert len(after_steps) == 13
    for percent, step in ((1, 1), (60, 8), (100, 13)):
        assert point(percent, 13) == step
        found = weights(place / "out" / "members" / f"bag-100-at-{percent}")
        assert difference(found, after_steps[step - 1]) == 0
    recipe = (place / "out" / "merge.yaml").read_text()
    assert recipe.count("weight: 19.3") == 3  # a third of 58 rows each


def test_the_exponential_mean_is_that_of_all_steps(
    place: Path, after_steps: list[dict[str, np.ndarray]]
) -> None:
    decay = 0.8
    train(plan(place, members=[{"ratio": 100, "ema": decay}]), place / "out")
    shares = np.array([decay ** (len(after_steps) - i) for i in range(1, len(after_steps) + 1)])
    shares /= shares.sum()
    found = weights(place / "out" / "members" / "bag-100")
    for name, mean in found.items():
        expected = sum(share * step[name] for share, step in zip(shares, after_steps, strict=True))
        assert np.abs(mean - expected).max() < 1e-6
    assert difference(found, after_steps[-1]) > 1e-4


class Scripted:
    """A dev task with these scores, one after the other."""

    primary_metric = "score"
    greater_is_better = True

    def __init__(self, scores: list[float]):
        self._scores = iter(scores)

    def __call__(self, model: Any, **where: Any) -> dict[str, float]:
        return {"score": next(self._scores)}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Sets the scores of the dev task."""
    from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

    from mergekit_embed.train import fit

    class Task(Scripted, SentenceEvaluator):
        pass

    def script(scores: list[float]) -> None:
        monkeypatch.setattr(fit, "_evaluator", lambda plan: Task(scores))

    return script


@pytest.mark.parametrize(
    ("scores", "steps", "best"),
    [
        ([0.1, 0.5, 0.4, 0.5, 0.9], 8, 4),  # two evaluations without a better one
        ([0.1, 0.2, 0.3, 0.2, 0.4, 0.3, 0.35], 13, 10),  # the whole way, the end evaluated too
        ([float("nan"), 0.1, float("nan"), 0.05, 0.2], 8, 4),
    ],
)
def test_early_stop_keeps_the_best(
    place: Path,
    after_steps: list[dict[str, np.ndarray]],
    scripted: Callable[[list[float]], None],
    scores: list[float],
    steps: int,
    best: int,
) -> None:
    scripted(scores)
    (place / "dev").mkdir()
    stop = {"task": "dev", "every": 2, "patience": 2}
    train(plan(place, early_stop=stop), place / "out")
    told = record(place / "out")["members"]["bag-100"]
    assert (told["steps"], len(after_steps), told["best"]["step"]) == (steps, steps, best)
    assert difference(weights(place / "out" / "members" / "bag-100"), after_steps[best - 1]) == 0


def test_early_stop_goes_with_no_other_choice_of_weights(place: Path) -> None:
    stop = {"task": "dev"}
    for more in ({"ema": 0.9}, {"checkpoints": [50, 100]}):
        with pytest.raises(RecipeError, match="exclude each other"):
            load(plan(place, early_stop=stop, members=[{"ratio": 100, **more}]))


def test_a_dev_task_that_is_not_there(place: Path) -> None:
    with pytest.raises(DataError, match="there is no folder nowhere"):
        train(plan(place, early_stop={"task": "nowhere"}), place / "out")


# --- what can go wrong --------------------------------------------------------------------------


def _train(place: Path, **changes: Any) -> TrainingResult:
    return train(plan(place, **changes), place / "out")


def test_the_folder_is_of_one_run_at_a_time(place: Path) -> None:
    with held(place / "out"), pytest.raises(OutputError, match="another run is writing"):
        _train(place)
    assert not (place / "out").exists()


def test_folders_of_others_are_left_alone(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="files that are not"):
        _train(place)
    with pytest.raises(OutputExistsError, match=r"holds \./base"):
        train(plan(place), place)
    assert [path.name for path in (place / "out").iterdir()] == ["thesis.txt"]


def test_poolings_are_known_once(place: Path) -> None:
    with pytest.raises(UsageError, match="a pooling of its own"):
        _train(place, pooling="mean")
    for name in ("modules.json", "1_Pooling", "2_Normalize", "config_sentence_transformers.json"):
        path = place / "base" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UsageError, match="a bare transformer"):
        _train(place)
    assert not (place / "out").exists()


def test_what_the_device_cannot_do(place: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("the device can")
    with pytest.raises(UsageError, match=r"fp16.*needs a GPU"):
        _train(place, training={"precision": "fp16"})


def test_a_loss_that_is_no_number_ends_it(place: Path) -> None:
    with pytest.raises(NonFiniteError, match="bag-100: the loss is nan at step"):
        _train(place, training={"learning_rate": 1e30, "max_gradient_norm": 0, "warmup": 0})
    assert not (place / "out" / "members").exists()


def test_a_base_that_cannot_be_loaded(place: Path) -> None:
    (place / "base" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(mergekit_embed.CheckpointError, match="cannot be loaded to be trained"):
        _train(place)


def test_a_record_that_cannot_be_read(finished: Path) -> None:
    (finished / "out" / "training.json").write_text("{")
    with pytest.raises(OutputError, match="pass --restart"):
        train(plan(finished, members=[50]), finished / "out")
    result = train(plan(finished, members=[50]), finished / "out", restart=True)
    assert result.trained == ("bag-50",)


def test_wrong_arguments(place: Path) -> None:
    with pytest.raises(UsageError, match="no executor"):
        train(plan(place), place / "out", executor="slurm")
    with pytest.raises(UsageError, match="needs the executor `ray`"):
        train(plan(place), place / "out", ray_address="host:1")


def test_progress_tells_every_step(place: Path) -> None:
    told: list[tuple[Any, ...]] = []

    class Telling:
        def started(self, *values: Any) -> None:
            told.append(("started", *values))

        def stepped(self, *values: Any) -> None:
            told.append(("stepped", *values))

        def finished(self, *values: Any) -> None:
            told.append(("finished", *values))

        def note(self, text: str) -> None:
            told.append(("note", text))

    train(plan(place, training={"steps": 3}), place / "out", progress=Telling())
    assert told[0] == ("started", "bag-100", 1, 1, 0, 3)
    assert [one[2] for one in told if one[0] == "stepped" and one[3] is None] == [1, 2, 3]
    losses = [one[3] for one in told if one[0] == "stepped" and one[3] is not None]
    assert losses == [one["loss"] for one in record(place / "out")["members"]["bag-100"]["curve"]]
    assert told[-1] == ("finished", "bag-100")
    json.dumps(told)
