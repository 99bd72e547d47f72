"""Edits of merged weights: what they compute, what the edited models do, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import tiny_models
from helpers import boom_merge, changed_json, changed_tensors, write_recipe
from reference import round_to, storage_from_float64
from tensor_folders import random_model, raw_bytes, read_folder, stored, write_folder
from tiny_models import ARCHITECTURES, embed, perturb, read_tensors

import mergekit_embed
from mergekit_embed.errors import PlanError, RecipeError
from mergekit_embed.recipe.reference import json_schema

TEMPERATURE = 0.7
QUERY = "encoder.layer.0.attention.self.query"
TABLE = "embeddings.position_embeddings.weight"
OUT = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def merge(out: Path, *models: Path, method: str = "linear", **more: Any) -> Path:
    recipe = {"merge_method": method, "models": [{"model": str(model)} for model in models]}
    mergekit_embed.merge({**recipe, **more}, out, device="cpu")
    return out


# --- what is computed -----------------------------------------------------------------------

METHODS: dict[str, tuple[int, bool, dict[str, Any]]] = {
    # name: (members, base, parameters)
    "linear": (3, False, {}),
    "delta_guided": (3, True, {}),
    "ties": (3, True, {"density": 0.4}),
    "median": (3, False, {}),
    "nearswap": (1, True, {"t": 0.001}),
}


@pytest.fixture(scope="module", params=["F32", "BF16"])
def encoders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The stored type, and folders of tensors: a base and three fine-tunes with three layers."""
    root = tmp_path_factory.mktemp(request.param)
    models = [random_model(0)]
    models += [random_model(seed, around=models[0]) for seed in (1, 2, 3)]
    generator = np.random.default_rng(5)
    paths = []
    for index, model in enumerate(models):
        for layer in (1, 2):
            model[QUERY.replace("0", str(layer)) + ".weight"] = generator.normal(size=(96, 96))
        model[TABLE] = generator.normal(size=(40, 96))
        paths.append(write_folder(root / f"m{index}", stored(model, request.param), request.param))
    return request.param, paths


def is_query(name: str) -> bool:
    return ".attention.self.query." in name


@pytest.mark.parametrize("unit", ["tensor", "row", "model"])
@pytest.mark.parametrize("method", METHODS)
def test_queries_are_divided_in_float64_and_rounded_once(
    method: str, unit: str, encoders: Any, tmp_path: Path
) -> None:
    if unit != "tensor" and method not in {"linear", "delta_guided"}:
        unit = "tensor"
    dtype, (base, *members) = encoders
    count, based, parameters = METHODS[method]
    options: dict[str, Any] = {"method": method, "parameters": parameters, "granularity": unit}
    options |= {"base_model": str(base)} if based else {}
    plain = merge(tmp_path / "plain", *members[:count], **options)
    exact = merge(tmp_path / "exact", *members[:count], **options, out_dtype="float64")
    post = [{"temp_scale": TEMPERATURE}]
    edited = merge(tmp_path / "edited", *members[:count], **options, post=post)
    unedited, result, doubles = raw_bytes(plain), raw_bytes(edited), read_folder(exact)
    assert result.keys() == unedited.keys()
    assert sum(map(is_query, result)) == 4
    for name, found in result.items():
        if is_query(name):
            wanted = round_to(doubles[name] / TEMPERATURE, dtype)
            assert found == bytes(storage_from_float64(wanted, dtype)), name
        else:
            assert found == unedited[name], name


def test_a_query_that_is_copied_is_divided_too(encoders: Any, tmp_path: Path) -> None:
    dtype, (first, second, *_) = encoders
    model = read_folder(second)
    del model[f"{QUERY}.weight"]
    lacking = write_folder(tmp_path / "lacking", model, dtype)
    options = {"missing_tensors": "copy", "post": [{"temp_scale": TEMPERATURE}]}
    result = read_folder(merge(tmp_path / "out", first, lacking, **options))
    wanted = round_to(read_folder(first)[f"{QUERY}.weight"] / TEMPERATURE, dtype)
    assert np.array_equal(result[f"{QUERY}.weight"], wanted)


@pytest.mark.parametrize("rows", [9, 900, 2400])
def test_of_a_fused_projection_the_rows_of_the_queries_are_divided(
    rows: int, tmp_path: Path
) -> None:
    """With 900 rows the queries end within the first chunk, with 2400 within the second."""
    shapes = {"layers.0.attn.Wqkv.weight": (rows, 500), "layers.0.attn.Wqkv.bias": (rows,)}
    paths = []
    for seed in (1, 2):
        generator = np.random.default_rng(seed)
        model = {name: generator.normal(size=shape) for name, shape in shapes.items()}
        paths.append(write_folder(tmp_path / f"m{seed}", stored(model, "F32"), "F32"))
        (paths[-1] / "config.json").write_text('{"model_type": "modernbert"}')
    exact = read_folder(merge(tmp_path / "exact", *paths, out_dtype="float64"))
    post = [{"temp_scale": TEMPERATURE}]
    result = read_folder(merge(tmp_path / "out", *paths, post=post))
    for name, wanted in exact.items():
        wanted[: rows // 3] /= TEMPERATURE
        assert np.array_equal(result[name], round_to(wanted, "F32")), name


def stretched(table: Any, rows: int) -> Any:
    """Row by row, from the definition."""
    found = []
    for j in range(rows):
        position, rest = divmod(j * (len(table) - 1), rows - 1)
        part = rest / (rows - 1)
        after = table[min(position + 1, len(table) - 1)]
        found.append(table[position] if not rest else (1 - part) * table[position] + part * after)
    return np.array(found)


@pytest.mark.parametrize("positions", [41, 79, 4096])
@pytest.mark.parametrize("cast", [None, "bfloat16"])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_positions_are_interpolated_in_float64_and_rounded_once(
    method: str, cast: str | None, positions: int, encoders: Any, tmp_path: Path
) -> None:
    dtype, (base, *members) = encoders
    options: dict[str, Any] = {"method": method, "base_model": str(base), "max_shard_size": "100kB"}
    exact = read_folder(merge(tmp_path / "exact", *members, **options, out_dtype="float64"))
    post: list[dict[str, Any]] = [{"extend_positions": positions}]
    post += [{"cast": cast}] if cast else []
    out = merge(tmp_path / "out", *members, **options, post=post)
    result = read_folder(out)
    stored_as = "BF16" if cast else dtype
    wanted = round_to(stretched(exact[TABLE], positions), stored_as)
    assert np.array_equal(result[TABLE], wanted)
    assert np.array_equal(result[TABLE][[0, -1]], round_to(exact[TABLE][[0, -1]], stored_as))
    for name in result.keys() - {TABLE}:
        assert np.array_equal(result[name], round_to(exact[name], stored_as)), name
    config = json.loads((out / "config.json").read_text())
    assert config["max_position_embeddings"] == positions
    assert config.get("torch_dtype") == cast


def test_twice_as_many_positions_but_one_keep_every_old_one(encoders: Any, tmp_path: Path) -> None:
    _, (base, member, *_) = encoders
    out = merge(tmp_path / "out", base, member, post=[{"extend_positions": 79}])
    plain = merge(tmp_path / "plain", base, member)
    assert np.array_equal(read_folder(out)[TABLE][::2], read_folder(plain)[TABLE])


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float64"])
def test_a_cast_is_the_stored_type(name: str, encoders: Any, tmp_path: Path) -> None:
    _, (base, member, *_) = encoders
    told = merge(tmp_path / "told", base, member, out_dtype=name)
    cast = merge(tmp_path / "cast", base, member, dtype="float16", post=[{"cast": name}])
    assert raw_bytes(cast) == raw_bytes(told)
    assert (cast / "config.json").read_text() == (told / "config.json").read_text()


def test_the_order_of_edits_is_no_matter(encoders: Any, tmp_path: Path) -> None:
    _, (base, member, *_) = encoders
    post = [{"cast": "bfloat16"}, {"temp_scale": TEMPERATURE}, {"extend_positions": 55}]
    one = merge(tmp_path / "one", base, member, post=post)
    other = merge(tmp_path / "other", base, member, post=post[::-1])
    assert raw_bytes(one) == raw_bytes(other)


# --- what edited models do ------------------------------------------------------------------


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "vocab_size": 99,
}


def _bare(kind: str, **more: Any) -> Callable[[Path], Path]:
    """A tiny transformer of another architecture, without a tokenizer."""

    def build(path: Path) -> Path:
        import torch
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.for_model(kind, **SIZES, **more)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            AutoModel.from_config(config).save_pretrained(path)
        return path

    return build


BUILDERS: dict[str, Callable[[Path], Path]] = {
    **{name: (lambda path, build=build: build(path, 0)) for name, build in ARCHITECTURES.items()},
    **{kind: _bare(kind) for kind in ("camembert", "electra", "llama", "mpnet", "roberta")},
    **{kind: _bare(kind, num_key_value_heads=2) for kind in ("mistral", "qwen2")},
    "distilbert": _bare("distilbert", dim=32, n_layers=2, n_heads=4, hidden_dim=64),
}


def hidden_states(path: Path, temperature: float, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the transformer makes of some tokens with its attention's logits divided."""
    import torch
    from transformers import AutoModel, T5EncoderModel

    softmax = torch.nn.functional.softmax
    kind = json.loads((path / "config.json").read_text())["model_type"]
    auto = T5EncoderModel if kind == "t5" else AutoModel
    model = auto.from_pretrained(
        path, dtype=torch.float64, attn_implementation="eager", local_files_only=True
    ).eval()
    tokens = torch.arange(5, 50).reshape(3, 15)
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(
            torch.nn.functional,
            "softmax",
            lambda logits, *rest, **more: softmax(logits / temperature, *rest, **more),
        )
        return model(input_ids=tokens).last_hidden_state.numpy()


@pytest.mark.parametrize("name", BUILDERS)
def test_a_temperature_divides_the_logits_of_the_attention(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BUILDERS[name](tmp_path / "model")
    with changed_tensors(model) as tensors:  # attention that has something to say
        for key, tensor in tensors.items():
            tensors[key] = tensor * (1 if "norm" in key.lower() or tensor.ndim < 2 else 6)
    options = {"method": "passthrough", "out_dtype": "float64"}
    post = [{"temp_scale": TEMPERATURE}]
    plain = merge(tmp_path / "plain", model, **options)
    edited = merge(tmp_path / "edited", model, **options, post=post)
    wanted = hidden_states(plain, TEMPERATURE, monkeypatch)
    found = hidden_states(edited, 1.0, monkeypatch)
    size = np.abs(wanted).max()
    # Some architectures take their softmax in float32, whatever the rest is in.
    assert np.allclose(found, wanted, rtol=0, atol=1e-5 * size)
    assert np.abs(hidden_states(plain, 1.0, monkeypatch) - wanted).max() > 1e-3 * size


TEXTS = ["a quick brown fox jumps over the lazy dog", "how long is the longest river?"]


def test_embeddings_are_those_of_a_model_edited_by_hand(tmp_path: Path) -> None:
    base = tiny_models.build_minilm(tmp_path / "base", 0, dense=True)
    member = perturb(base, tmp_path / "member", 1)
    post = [{"temp_scale": TEMPERATURE}]
    edited = merge(tmp_path / "edited", base, member, post=post)
    by_hand = merge(tmp_path / "by hand", base, member)
    with changed_tensors(by_hand) as tensors:
        for name in tensors:
            if is_query(name):
                tensors[name] = (tensors[name] / TEMPERATURE).astype(np.float32)
    assert np.allclose(embed(edited, TEXTS), embed(by_hand, TEXTS), rtol=0, atol=1e-6)


LONG = " ".join(f"{word} river" for word in tiny_models.WORDS[:60])


@pytest.mark.parametrize("name", ["minilm", "xlm_roberta"])
@pytest.mark.parametrize("limit", [None, 48])
def test_an_extended_model_embeds_longer_texts(
    name: str, limit: int | None, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    options: dict[str, Any] = {"position_ids": True} if name == "minilm" else {}
    base = ARCHITECTURES[name](tmp_path / "base", 0, **options)
    if limit is not None:
        with changed_json(base / "sentence_bert_config.json") as config:
            config["max_seq_length"] = limit
    member = perturb(base, tmp_path / "member", 1)
    plain = merge(tmp_path / "plain", base, member)
    out = merge(tmp_path / "out", base, member, post=[{"extend_positions": 160}])
    offset = 2 if name == "xlm_roberta" else 0
    table, old = read_tensors(out)[TABLE][1], read_tensors(plain)[TABLE][1]
    assert table.shape == (160 + offset, 32)
    assert np.array_equal(table[:offset], old[:offset])
    # What `plain` stores is rounded already, so the interpolation of it is only near.
    assert np.allclose(table[offset:], stretched(old[offset:], 160), rtol=0, atol=1e-8)
    assert np.array_equal(table[[offset, -1]], old[[offset, -1]])
    model = SentenceTransformer(str(out), device="cpu", local_files_only=True)
    assert model.max_seq_length == 160
    assert model.tokenizer.model_max_length == 160
    assert model[0].auto_model.config.max_position_embeddings == 160 + offset
    longer, cut = embed(out, [LONG, LONG + " moon"])
    assert np.isfinite(longer).all()
    assert not np.allclose(longer, cut)
    assert np.allclose(*embed(plain, [LONG, LONG + " moon"]))  # beyond what it reads
    short = embed(out, ["a"])
    assert np.isfinite(short).all()


def test_layers_that_were_put_together_are_edited_as_the_result_has_them(tmp_path: Path) -> None:
    base = tiny_models.build_minilm(tmp_path / "base", 0, layers=4)
    slices = [{"sources": [{"model": str(base), "layer_range": [i, i + 1]}]} for i in (0, 3)]
    recipe = {
        "merge_method": "passthrough",
        "slices": slices,
        "post": [{"temp_scale": 0.5}, {"extend_positions": 100}],
    }
    mergekit_embed.merge(recipe, tmp_path / "out")
    before, after = read_tensors(base), read_tensors(tmp_path / "out")
    for new, old in enumerate((0, 3)):
        name = "encoder.layer.{}.attention.self.query.weight"
        wanted = before[name.format(old)][1] * 2
        assert np.array_equal(after[name.format(new)][1], wanted)
    assert len(after[TABLE][1]) == 100
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["max_position_embeddings"]) == (2, 100)


def test_a_dry_run_tells_of_the_edits(tmp_path: Path) -> None:
    tiny_models.build_minilm(tmp_path / "base", 0)
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        """
        merge_method: passthrough
        models:
          - model: base
        post:
          - temp_scale: 0.9
          - extend_positions: 128
        """,
    )
    ran = boom_merge(recipe, "-o", tmp_path / "out", "--dry-run")
    assert ran.code == 0
    assert "edit  queries of 2 layers divided by 0.9 (attention.self.query)" in ran.out
    assert f"edit  positions: 64 of {TABLE} interpolated to 128" in ran.out
    assert not (tmp_path / "out").exists()


# --- what is refused ------------------------------------------------------------------------


def tensor_model(path: Path, kind: str, tensors: dict[str, Any], **config: Any) -> Path:
    model = {name: np.ones(shape) for name, shape in tensors.items()}
    write_folder(path, model, "F32")
    (path / "config.json").write_text(json.dumps({"model_type": kind, **config}))
    return path


BERT = {f"{QUERY}.weight": (4, 4), TABLE: (8, 4)}
NAME = QUERY.replace("0", "1")


@pytest.mark.parametrize(
    ("kind", "tensors", "config", "edit", "message"),
    [
        (
            "gemma3_text",
            {"layers.0.self_attn.q_proj.weight": (4, 4), "layers.0.self_attn.q_norm.weight": (4,)},
            {},
            {"temp_scale": 0.9},
            "does not know where a model of type gemma3_text .* keeps its queries; it knows bert "
            r"\(attention.self.query\), .*qwen3 \(self_attn.q_norm\)",
        ),
        (
            "bert",
            {"encoder.layer.0.attention.q.weight": (4, 4)},
            {},
            {"temp_scale": 0.9},
            "looked for attention.self.query, as a model of type bert has it, and found it nowhere",
        ),
        (
            "bert",
            {f"{QUERY}.weight": (4, 4), "encoder.layer.1.mixer.Wqkv.weight": (12, 4)},
            {},
            {"temp_scale": 0.9},
            "found it in 1 of 2 layers of",
        ),
        (
            "bert",
            BERT,
            {"position_embedding_type": "relative_key_query"},
            {"temp_scale": 0.9},
            "adds products of positions to its logits",
        ),
        (
            "modernbert",
            {"layers.0.attn.Wqkv.weight": (10, 4)},
            {},
            {"temp_scale": 0.9},
            r"layers.0.attn.Wqkv.weight has shape \[10, 4\], and not as many rows",
        ),
        ("t5", {}, {}, {"extend_positions": 64}, "is a t5, whose positions are relative"),
        ("qwen3", {}, {}, {"extend_positions": 64}, "set `max_position_embeddings: 64`"),
        ("modernbert", {}, {}, {"extend_positions": 64}, "whose positions are rotary"),
        (
            "deberta-v2",
            {"embeddings.position_embeddings.weight": (8, 4)},
            {},
            {"extend_positions": 64},
            "looked for embeddings.position_embeddings.weight, .* a model of type deberta-v2",
        ),
        ("bert", {}, {}, {"extend_positions": 64}, "a model of type bert, has none"),
        (
            "bert",
            BERT,
            {"position_embedding_type": "relative_key"},
            {"extend_positions": 64},
            "has none that is known",
        ),
        ("bert", BERT, {}, {"extend_positions": 8}, "has 8 positions; name a larger number"),
        ("roberta", BERT, {"pad_token_id": 1}, {"extend_positions": 6}, "has 6 positions"),
        ("roberta", BERT, {"pad_token_id": 9}, {"extend_positions": 6}, "no two positions"),
        ("bert", {TABLE: (8,)}, {}, {"extend_positions": 64}, r"has shape \[8\]"),
    ],
)
def test_models_that_an_edit_does_not_suit_are_refused(
    kind: str,
    tensors: dict[str, Any],
    config: dict[str, Any],
    edit: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    model = tensor_model(tmp_path / "model", kind, tensors or {"norm.weight": (4,)}, **config)
    recipe = {"merge_method": "passthrough", "models": [{"model": str(model)}]}
    with pytest.raises(PlanError, match=message) as caught:
        mergekit_embed.plan({**recipe, "post": [{"cast": "float16"}, edit]}, tmp_path / "out")
    assert f"post[1].{next(iter(edit))}: " in str(caught.value)


def test_quantised_queries_are_refused(tmp_path: Path) -> None:
    model = tensor_model(tmp_path / "model", "bert", BERT)
    with changed_tensors(model) as tensors:
        tensors[f"{QUERY}.weight"] = np.ones((4, 4), dtype=np.int8)
    recipe = {"merge_method": "passthrough", "models": [{"model": str(model)}]}
    with pytest.raises(PlanError, match="is stored as I8, which cannot be divided"):
        mergekit_embed.plan({**recipe, "post": [{"temp_scale": 2}]}, tmp_path / "out")


@pytest.mark.parametrize(
    ("post", "message"),
    [
        ([], "post: must list at least one edit"),
        ({"cast": "float32"}, "post: must be a list, not a mapping"),
        (["cast"], 'post[0]: must be a mapping such as `{temp_scale: 0.9}`, not "cast"'),
        ([{}], "post[0]: must be one edit, such as {temp_scale: 0.9}"),
        ([{"cast": "float32", "temp_scale": 1}], "post[0]: must be one edit"),
        ([{"temp_scal": 1}], 'post[0].temp_scal: unknown key, did you mean "temp_scale"?'),
        ([{"temp_scale": 0}], "post[0].temp_scale: must be a number above 0, such as 0.9, not 0"),
        ([{"temp_scale": -1}], "post[0].temp_scale: must be a number above 0"),
        ([{"temp_scale": float("inf")}], "post[0].temp_scale: must be a number above 0"),
        ([{"temp_scale": float("nan")}], "post[0].temp_scale: must be a number above 0"),
        ([{"temp_scale": True}], "post[0].temp_scale: must be a number above 0"),
        ([{"temp_scale": "0.9"}], "post[0].temp_scale: must be a number above 0"),
        ([{"temp_scale": None}], "post[0].temp_scale: must be a number above 0"),
        ([{"cast": "int8"}], "post[0].cast: must be one of float64, float32, float16, bfloat16"),
        ([{"cast": None}], "post[0].cast: must be one of float64"),
        ([{"extend_positions": 1.5}], "post[0].extend_positions: must be a whole number"),
        ([{"extend_positions": 1}], "post[0].extend_positions: must be at least 2, not 1"),
        ([{"extend_positions": 10**12}], "post[0].extend_positions: must be at most 16777216"),
        ([{"cast": "float16"}, {"cast": "float32"}], "post[1].cast: is there twice; keep one"),
    ],
)
def test_edits_that_make_no_sense_are_refused(post: Any, message: str) -> None:
    recipe = {"merge_method": "linear", "models": [{"model": "a"}], "post": post}
    with pytest.raises(RecipeError) as caught:
        mergekit_embed.load_recipe(recipe)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "post", [[], [{}], [{"cast": "float32", "temp_scale": 1}], [{"temp_scale": 0}], [{"x": 1}]]
)
def test_the_schema_refuses_edits_too(post: Any) -> None:
    recipe = {"merge_method": "linear", "models": [{"model": "a"}]}
    jsonschema.validate({**recipe, "post": [{"temp_scale": 0.5}]}, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**recipe, "post": post}, json_schema())


def test_a_cast_beside_out_dtype_is_refused() -> None:
    recipe = {"merge_method": "linear", "models": [{"model": "a"}], "out_dtype": "float32"}
    with pytest.raises(RecipeError, match=r"post\[0\].cast: and `out_dtype` say the same; keep"):
        mergekit_embed.load_recipe({**recipe, "post": [{"cast": "float16"}]})
