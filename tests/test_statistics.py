"""What `boom stats` measures is what plain code measures, and its errors say what is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from helpers import Ran, files, ran, siblings
from safetensors import safe_open
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from tiny_models import build_minilm, build_qwen3, build_t5_encoder
from torch.nn import functional
from transformers import AutoModel, BertTokenizer, GPT2Config, GPT2Model

from mergekit_embed import DataError, NonFiniteError, OutputExistsError, UsageError
from mergekit_embed.checkpoint import open_checkpoint
from mergekit_embed.cli.boom import boom
from mergekit_embed.errors import CheckpointError
from mergekit_embed.statistics import Options, collect_statistics

Arrays = dict[str, np.ndarray]

TEXTS = [
    "a big boat on the river",
    "snow",
    "the old dog could not find his house in the city after the rain",
    "under the moon",
    "who made this map of the world",
    "tea and bread",
    "her letter",
]

RANKED: list[dict[str, Any]] = [
    {"query": "where is the boat", "pos": ["the boat is on the river"], "neg": ["a red car"]},
    {"query": "what do you eat", "pos": ["bread and apple"], "neg": ["the wall is high"]},
    {"query": "who sings", "pos": ["the bird sings"], "neg": ["we drink tea", "snow"]},
    {"query": "when is winter", "pos": ["after the summer", "before spring"]},
    {"query": "how old is the tree", "pos": ["the tree is very old"]},
    {"query": "why is it cold", "pos": ["the wind is cold"]},
]

SCORED = [
    {"sentence1": TEXTS[0], "sentence2": "a boat", "score": 0.9},
    {"sentence1": TEXTS[1], "sentence2": "rain", "score": 0.4},
    {"sentence1": TEXTS[2], "sentence2": "a cat", "score": 0.1},
]


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """A file of rows, one a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plain(path: Path, texts: Sequence[str] = TEXTS) -> Path:
    """A file of texts by themselves."""
    return jsonl(path, [{"text": text} for text in texts])


def in_float64(model: Path) -> SentenceTransformer:
    """The model, exactly as stored."""
    loaded = SentenceTransformer(
        str(model), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"}
    )
    return loaded.double().eval()


def stored_name(name: str) -> str:
    """What the folder of a tiny model calls a parameter of the loaded one."""
    return name.removeprefix("0.model.").replace("2.linear", "2_Dense/linear")


class Recorder(torch.overrides.TorchFunctionMode):
    """Every call of `functional.linear`, whoever makes it: weights, and what goes into them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is functional.linear:
            self.calls.append((args[1], args[0].detach()))
        return function(*args, **(kwargs or {}))


def grams(model: Path, texts: Sequence[str], prompt: str | None = None) -> Arrays:
    """X^T X of every linear layer, from calls with one text each, in float64: no padding at all."""
    loaded = in_float64(model)
    names = {id(parameter): name for name, parameter in loaded.named_parameters()}
    found: Arrays = {}
    for text in texts:
        with torch.no_grad(), Recorder() as recorder:
            loaded(loaded.preprocess([text], prompt=prompt))
        for weight, inputs in recorder.calls:
            rows = inputs.reshape(-1, inputs.shape[-1]).numpy()
            name = stored_name(names[id(weight)])
            found[name] = found.get(name, 0.0) + rows.T @ rows
    return found


def measured(folder: Path, kind: str) -> Arrays:
    """The tensors of a folder of statistics."""
    return load_file(folder / f"{kind}.safetensors")


def assert_near(mine: Arrays, exact: Arrays, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest number of each tensor, or 1e-14 of all tensors' norm.

    The second is where float32 ends: softmax does not see the biases of keys, whose gradients are
    exactly zero, and squares of rounding errors when they are computed.
    """
    assert mine.keys() == exact.keys()
    noise = 1e-14 * np.sqrt(sum(float((want**2).sum()) for want in exact.values()))
    for name, want in exact.items():
        assert mine[name].dtype == np.float32
        near = tolerance * np.abs(want).max() + noise
        assert np.abs(mine[name] - want).max() <= near, name


GRAM = Options(fisher=False, device="cpu", batch_size=3)
FISHER = Options(gram=False, device="cpu", batch_size=3, temperature=0.05)


def with_dense(build: Callable[..., Path]) -> Callable[[Path], Path]:
    return lambda path: build(path, seed=3, dense=True)


MODELS = {
    "bert": with_dense(build_minilm),
    "qwen3": with_dense(build_qwen3),
    "t5": with_dense(build_t5_encoder),
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODELS[request.param](tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_minilm(tmp_path_factory.mktemp("bert") / "model", seed=3, dense=True)


# --- Gram matrices ------------------------------------------------------------------------


def test_gram_matrices_are_those_of_texts_run_one_by_one_in_float64(
    model: Path, tmp_path: Path
) -> None:
    """So neither padding nor what shares a batch counts, on either side of the texts."""
    done = collect_statistics(model, [plain(tmp_path / "p.jsonl")], tmp_path / "out", GRAM)
    exact = grams(model, TEXTS)
    assert_near(measured(tmp_path / "out", "gram"), exact)
    tensors = open_checkpoint(model).components
    shapes = {c.key(n): t.shape for c in tensors.values() for n, t in c.tensors.items()}
    assert all(exact[name].shape == (shapes[name][1],) * 2 for name in exact)
    assert "2_Dense/linear.weight" in exact
    assert done.summary["gram"]["texts"] == len(TEXTS)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_the_batch_size_does_not_change_gram_matrices(
    batch_size: int, bert: Path, tmp_path: Path
) -> None:
    data = plain(tmp_path / "p.jsonl")
    for name, size in (("one", 3), ("other", batch_size)):
        options = Options(fisher=False, device="cpu", batch_size=size)
        collect_statistics(bert, [data], tmp_path / name, options)
    one, other = (measured(tmp_path / name, "gram") for name in ("one", "other"))
    assert_near(other, {name: gram.astype(np.float64) for name, gram in one.items()}, 2e-6)


def test_every_text_of_a_row_counts_with_the_prompt_of_its_role(tmp_path: Path) -> None:
    prompts = {"query": "question: ", "document": "text: "}
    model = build_qwen3(tmp_path / "model", seed=3, prompts=prompts)
    row = {"query": "where is it", "pos": ["here", "there"], "neg": "in the city"}
    data = jsonl(tmp_path / "r.jsonl", [row, {"text": "snow", "label": 3}, SCORED[0]])
    done = collect_statistics(model, [data], tmp_path / "out", GRAM)
    parts = [
        grams(model, ["where is it"], "question: "),
        grams(model, ["here", "there", "in the city"], "text: "),
        grams(model, ["snow", TEXTS[0], "a boat"]),
    ]
    exact = {name: sum(part[name] for part in parts) for name in parts[0]}
    assert_near(measured(tmp_path / "out", "gram"), exact)
    assert done.summary["gram"]["texts"] == 7


def test_layers_that_store_their_weight_the_other_way_round_are_named(tmp_path: Path) -> None:
    model = tmp_path / "gpt2"
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    vocabulary |= {word: len(vocabulary) + i for i, word in enumerate("abcdefgh")}
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    GPT2Model(config).save_pretrained(model)
    BertTokenizer(vocab=vocabulary, model_max_length=16).save_pretrained(model)
    data = plain(tmp_path / "p.jsonl", ["a b c", "d"])
    done = collect_statistics(model, [data], tmp_path / "out", GRAM)
    gram = measured(tmp_path / "out", "gram")
    assert {name: g.shape[0] for name, g in gram.items()} == {
        "h.0.attn.c_attn.weight": 16,
        "h.0.attn.c_proj.weight": 16,
        "h.0.mlp.c_fc.weight": 16,
        "h.0.mlp.c_proj.weight": 64,
    }
    assert done.summary["gram"]["transposed"] == sorted(gram)
    assert any("no modules.json" in note for note in done.notes)


def test_no_text_is_longer_than_max_length(bert: Path, tmp_path: Path) -> None:
    options = Options(fisher=False, device="cpu", max_length=4)
    done = collect_statistics(bert, [plain(tmp_path / "p.jsonl")], tmp_path / "out", options)
    tokens = [len(SentenceTransformer(str(bert)).tokenizer(text).input_ids) for text in TEXTS]
    assert done.summary["gram"]["tokens"] == sum(min(count, 4) for count in tokens)


# --- Fisher -------------------------------------------------------------------------------


def embedded(model: SentenceTransformer, texts: Sequence[str], prompt: str | None) -> torch.Tensor:
    """Embeddings of unit length, with gradients, in float64."""
    vectors = model(model.preprocess(list(texts), prompt=prompt))["sentence_embedding"]
    return functional.normalize(vectors, dim=-1)


def contrastive(model: SentenceTransformer, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
    """InfoNCE: every positive and negative of the batch is a candidate of every query."""
    queries = embedded(model, [row["query"] for row in rows], model.prompts.get("query"))
    texts = [row["pos"][0] for row in rows]
    texts += [text for row in rows for text in row.get("neg", [])]
    logits = queries @ embedded(model, texts, model.prompts.get("document")).T / 0.05
    right = logits[torch.arange(len(rows)), torch.arange(len(rows))]
    return (logits.logsumexp(dim=1) - right).mean()


def cosent(model: SentenceTransformer, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
    """log(1 + sum exp((cos_j - cos_i) / T)) over pairs i with a higher score than j."""
    left = embedded(model, [row["sentence1"] for row in rows], None)
    right = embedded(model, [row["sentence2"] for row in rows], None)
    cosines = (left * right).sum(dim=1) / 0.05
    terms = [
        cosines[j] - cosines[i]
        for i in range(len(rows))
        for j in range(len(rows))
        if rows[i]["score"] > rows[j]["score"]
    ]
    return torch.stack([torch.zeros((), dtype=torch.float64), *terms]).logsumexp(dim=0)


def squares(
    model: Path, losses: Iterator[tuple[int, Callable[[SentenceTransformer], torch.Tensor]]]
) -> Arrays:
    """Squared gradients of the batches' losses, each counting with its examples."""
    loaded = in_float64(model)
    sums: Arrays = {}
    examples = 0
    for count, loss in losses:
        loaded.zero_grad()
        loss(loaded).backward()
        examples += count
        for name, parameter in loaded.named_parameters():
            if parameter.grad is not None:
                key = stored_name(name)
                sums[key] = sums.get(key, 0.0) + count * parameter.grad.numpy() ** 2
    return {name: total / examples for name, total in sums.items()}


def in_order(options: Options, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as the seed shuffles them."""
    import random

    shuffled = list(rows)
    random.Random(options.seed).shuffle(shuffled)
    return shuffled[: options.max_examples]


def test_the_fisher_is_the_mean_of_squared_gradients_of_batches(
    model: Path, tmp_path: Path
) -> None:
    data = jsonl(tmp_path / "r.jsonl", RANKED)
    done = collect_statistics(model, [data], tmp_path / "out", FISHER)
    rows = in_order(FISHER, RANKED)
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(len(row.get("neg", [])), []).append(row)
    batches = list(groups.values())  # none has more than three rows
    assert sorted(map(len, batches)) == [1, 2, 3]
    exact = squares(model, ((len(b), lambda loaded, b=b: contrastive(loaded, b)) for b in batches))
    assert_near(measured(tmp_path / "out", "fisher"), exact, 2e-4)
    found = done.summary["fisher"]
    assert (found["examples"], found["batches"]) == (6, 3)
    total = np.sqrt(sum(float((square**2).sum()) for square in exact.values()))
    assert found["norm"] == pytest.approx(total, rel=1e-3)


def test_scored_pairs_have_the_gradients_of_cosent(bert: Path, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "s.jsonl", SCORED)
    collect_statistics(bert, [data], tmp_path / "out", FISHER)
    rows = in_order(FISHER, SCORED)
    exact = squares(bert, iter([(3, lambda loaded: cosent(loaded, rows))]))
    assert_near(measured(tmp_path / "out", "fisher"), exact, 2e-4)


def test_parameters_without_a_gradient_are_left_out_and_named(bert: Path, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "r.jsonl", RANKED)
    done = collect_statistics(bert, [data], tmp_path / "out", FISHER)
    pooler = ["pooler.dense.bias", "pooler.dense.weight"]
    assert done.summary["fisher"]["unused"] == pooler
    assert not set(pooler) & measured(tmp_path / "out", "fisher").keys()
    assert any("pooler.dense.weight have no gradient" in note for note in done.notes)


def test_rows_that_nothing_is_compared_with_have_no_part(bert: Path, tmp_path: Path) -> None:
    rows = [RANKED[3], RANKED[4], {"text": "snow"}, SCORED[0]]
    data = jsonl(tmp_path / "r.jsonl", rows)
    done = collect_statistics(bert, [data], tmp_path / "out", FISHER)
    assert done.summary["fisher"]["examples"] == 2
    assert done.summary["fisher"]["left_out"] == 2
    assert any("2 rows have no part in the Fisher" in note for note in done.notes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "snow"}], "no rows have a loss"),
        ([RANKED[3]], "no rows have a loss"),
        ([{**row, "score": 0.5} for row in SCORED], "every gradient of"),
    ],
)
def test_rows_without_any_gradient_are_refused(
    rows: list[dict[str, Any]], message: str, bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        collect_statistics(bert, [jsonl(tmp_path / "r.jsonl", rows)], tmp_path / "out", FISHER)
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


# --- the folder ---------------------------------------------------------------------------


def test_the_same_measurement_gives_the_same_bytes_and_another_seed_others(
    bert: Path, tmp_path: Path
) -> None:
    data = jsonl(tmp_path / "r.jsonl", RANKED + SCORED)
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        options = Options(device="cpu", batch_size=2, max_examples=5, seed=seed)
        collect_statistics(bert, [data], tmp_path / name, options)
    one = files(tmp_path / "one")
    assert one == files(tmp_path / "same")
    assert one.keys() == {"fisher.safetensors", "gram.safetensors", "statistics.json"}
    assert one["fisher.safetensors"] != files(tmp_path / "other")["fisher.safetensors"]


def test_the_files_say_what_was_measured(bert: Path, tmp_path: Path) -> None:
    import hashlib

    data = jsonl(tmp_path / "r.jsonl", RANKED)
    more = plain(tmp_path / "p.jsonl")
    options = Options(device="cpu", seed=4, max_examples=9)
    done = collect_statistics(bert, [data, more], tmp_path / "out", options)
    digest = hashlib.sha256(data.read_bytes() + more.read_bytes()).hexdigest()
    assert done.summary == json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert done.summary["data"] == {
        "files": [str(data), str(more)],
        "sha256": digest,
        "rows": 13,
        "used": 9,
    }
    for kind, counted in (("gram", "tokens"), ("fisher", "examples")):
        with safe_open(tmp_path / "out" / f"{kind}.safetensors", "np") as file:
            metadata = file.metadata()
        assert metadata["model"] == str(bert)
        assert (metadata["data_sha256"], metadata["seed"]) == (digest, "4")
        assert metadata[counted] == str(done.summary[kind][counted])
    assert done.bytes_written == sum(map(len, files(tmp_path / "out").values()))


def test_statistics_are_replaced_whole_and_only_when_asked(bert: Path, tmp_path: Path) -> None:
    data, out = jsonl(tmp_path / "r.jsonl", RANKED), tmp_path / "out"
    collect_statistics(bert, [data], out, FISHER)
    before = files(out)
    with pytest.raises(OutputExistsError, match="pass --overwrite"):
        collect_statistics(bert, [data], out, GRAM)
    with pytest.raises(DataError):
        collect_statistics(bert, [plain(data)], out, FISHER, overwrite=True)
    assert files(out) == before
    collect_statistics(bert, [data], out, GRAM, overwrite=True)
    assert files(out).keys() == {"gram.safetensors", "statistics.json"}
    assert siblings(out) == []


def test_other_files_are_never_replaced(bert: Path, tmp_path: Path) -> None:
    data, out = plain(tmp_path / "p.jsonl"), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExistsError, match="choose another folder"):
        collect_statistics(bert, [data], out, GRAM, overwrite=True)
    assert (out / "thesis.tex").read_text() == "years of work"


def test_a_model_that_is_not_finite_is_named(tmp_path: Path) -> None:
    from helpers import changed_tensors

    model = build_minilm(tmp_path / "model", seed=3)
    with changed_tensors(model) as tensors:
        tensors["embeddings.word_embeddings.weight"][:] = np.inf
    for options, rows in ((GRAM, [{"text": "snow"}]), (FISHER, RANKED)):
        data = jsonl(tmp_path / "r.jsonl", rows)
        with pytest.raises(NonFiniteError, match=str(model)):
            collect_statistics(model, [data], tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


# --- rows and options ---------------------------------------------------------------------


BAD = {
    "{": "is not JSON",
    "[]": "is not an object",
    "{}": "has the keys none",
    '{"query": "a"}': "`pos` must be a list",
    '{"query": "a", "pos": []}': "`pos` is empty",
    '{"query": "", "pos": ["b"]}': "`query` must be a text",
    '{"query": "a", "pos": ["b"], "neg": [3]}': "`neg` must hold texts",
    '{"sentence1": "a", "sentence2": "b"}': "`score` must be a finite number",
    '{"sentence1": "a", "sentence2": "b", "score": NaN}': "`score` must be a finite number",
    '{"sentence1": "a", "score": 1}': "`sentence2` must be a text",
    '{"text": "  "}': "`text` must be a text",
    '{"txt": "a"}': "has the keys txt",
    "\xff": "is not JSON",
}


def test_every_bad_row_is_told_with_its_line(bert: Path, tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    lines = ['{"text": "good"}', "", *BAD]
    data.write_bytes("\n".join(lines).encode("latin-1"))
    with pytest.raises(DataError) as caught:
        collect_statistics(bert, [data], tmp_path / "out", GRAM)
    assert caught.value.exit_code == 2
    for problem, (number, message) in zip(
        caught.value.problems, enumerate(BAD.values(), start=3), strict=True
    ):
        assert problem.where == f"{data}:{number}"
        assert problem.message.startswith(message)


def test_files_without_rows_and_files_that_are_not_there_are_told(
    bert: Path, tmp_path: Path
) -> None:
    empty = jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match=r"empty\.jsonl: holds no rows"):
        collect_statistics(bert, [empty], tmp_path / "out", GRAM)
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        collect_statistics(bert, [tmp_path / "none.jsonl"], tmp_path / "out", GRAM)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(fisher=False, gram=False), "neither"),
        (Options(batch_size=0), "batch_size must be at least 1"),
        (Options(temperature=0.0), "temperature must be above 0"),
        (Options(device="abacus"), "'abacus' is no device"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: Options, message: str, bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        collect_statistics(bert, [plain(tmp_path / "p.jsonl")], tmp_path / "out", options)


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    model = build_minilm(tmp_path / "model", seed=3)
    (model / "config.json").write_text('{"model_type": "abacus"}')
    with pytest.raises(CheckpointError, match="cannot be loaded by sentence-transformers"):
        collect_statistics(model, [plain(tmp_path / "p.jsonl")], tmp_path / "out", GRAM)


def test_a_model_with_an_adapter_is_to_be_merged_first(bert: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["query"])
    adapted = peft.get_peft_model(AutoModel.from_pretrained(bert), config)
    adapted.save_pretrained(str(tmp_path / "lora"))
    data = plain(tmp_path / "p.jsonl")
    with pytest.raises(UsageError, match="merge the adapter into it first"):
        collect_statistics(f"{bert}+{tmp_path / 'lora'}", [data], tmp_path / "out", GRAM)


def test_without_sentence_transformers_it_says_what_to_install(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'mergekit_embed\[train\]'"):
        collect_statistics(bert, [plain(tmp_path / "p.jsonl")], tmp_path / "out", GRAM)


# --- the command --------------------------------------------------------------------------


def boom_stats(*arguments: str | Path) -> Ran:
    return ran(boom, "stats", *arguments)


def test_the_command_measures_and_says_what_it_measured(bert: Path, tmp_path: Path) -> None:
    data, out = jsonl(tmp_path / "r.jsonl", RANKED), tmp_path / "stats" / "bert"
    ran = boom_stats(bert, "--data", data, "-o", out, "--batch-size", "4", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert ran.last == f'statistics: "{out}"'
    assert "Fisher on 6 examples in 3 batches" in ran.out
    assert "pooler.dense.bias" in ran.err
    assert files(out).keys() == {"fisher.safetensors", "gram.safetensors", "statistics.json"}
    again = boom_stats(bert, "--data", data, "-o", out, "--no-fisher")
    assert again.code == 2
    assert "--overwrite" in again.err


def test_the_command_speaks_json(bert: Path, tmp_path: Path) -> None:
    data, out = plain(tmp_path / "p.jsonl"), tmp_path / "out"
    ran = boom_stats(bert, "-d", data, "-o", out, "--no-fisher", "--json", "--device", "cpu")
    told = json.loads(ran.out)
    assert (ran.code, told["status"], told["output"]) == (0, "done", str(out))
    assert told["gram"]["texts"] == len(TEXTS)
    failed = boom_stats(bert, "-d", data, "-o", tmp_path / "other", "--json", "--device", "cpu")
    told = json.loads(failed.out)
    assert (failed.code, told["kind"]) == (2, "DataError")


def test_progress_reaches_its_total(bert: Path, tmp_path: Path) -> None:
    class Counting:
        def __init__(self) -> None:
            self.passes: list[list[Any]] = []

        def start(self, what: str, total: int) -> None:
            self.passes.append([what, total, 0])

        def advance(self, count: int) -> None:
            self.passes[-1][2] += count

    seen = Counting()
    data = jsonl(tmp_path / "r.jsonl", RANKED)
    options = Options(device="cpu", batch_size=3)
    collect_statistics(bert, [data], tmp_path / "out", options, progress=seen)
    assert seen.passes == [["Gram matrices", 17, 17], ["Fisher", 6, 6]]
