"""What the readers make of true files: tensors, components, names, places, and the shell."""

from __future__ import annotations

import gc
import json
import shutil
import struct
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from conftest import Family
from helpers import WEIGHTS, changed_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.torch import save_file
from tiny_models import build_t5_encoder, cast, read_tensors, shard, to_pickle

from mergekit_embed.checkpoint import (
    Checkpoint,
    Matcher,
    NotFoundError,
    StoredTensor,
    bare,
    is_derived_buffer,
    layout,
    locate,
    open_checkpoint,
    places,
    read_header,
    safetensors_file,
)
from mergekit_embed.checkpoint.pickle_file import read_pickle
from mergekit_embed.checkpoint.shell import difference, same
from mergekit_embed.dtypes import DType
from mergekit_embed.engine.reader import Reader
from mergekit_embed.process import uncollected

PICKLE = "pytorch_model.bin"

INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}


# --- helpers ------------------------------------------------------------------------------


@pytest.fixture
def model(family: Family, tmp_path: Path) -> Path:
    """A copy of the family's base: a BERT with pooling, a 2_Dense and Normalize."""
    return shutil.copytree(family.base, tmp_path / "model")


def stored(tensor: StoredTensor, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes of some elements of a tensor, as the engine reads them."""
    with Reader() as reader:
        return reader.read(tensor, start, tensor.count if stop is None else stop).tobytes()


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's elements in C order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def values(tensor: StoredTensor) -> np.ndarray:
    """The elements of a stored tensor: float64 for floats, else of their own type."""
    content = stored(tensor)
    label = str(tensor.dtype)
    if label == "BF16":
        wide = np.frombuffer(content, "<u2").astype("<u4") << 16
        flat = wide.view("<f4").astype(np.float64)
    elif tensor.dtype.is_float:
        flat = np.frombuffer(content, f"<f{tensor.dtype.itemsize}").astype(np.float64)
    else:
        flat = np.frombuffer(content, INTEGERS[label])
    return flat.reshape(tensor.shape)


def everything(checkpoint: Checkpoint) -> dict[str, tuple[str, np.ndarray]]:
    """All tensors of a model under the names that users see, in the form of `read_tensors`."""
    return {
        component.key(name): (str(tensor.dtype), values(tensor))
        for component in checkpoint.components.values()
        for name, tensor in component.tensors.items()
    }


def assert_reads_as_written(folder: Path) -> Checkpoint:
    """Every tensor is there, with the type and the values that the official libraries see."""
    checkpoint = open_checkpoint(folder)
    ours, theirs = everything(checkpoint), read_tensors(folder)
    assert ours.keys() == theirs.keys()
    for name, (dtype, array) in theirs.items():
        assert ours[name][0] == dtype
        np.testing.assert_array_equal(ours[name][1], array, strict=True)
    return checkpoint


# --- folders ------------------------------------------------------------------------------


def test_a_single_file_reads_as_the_official_library_reads_it(model: Path) -> None:
    checkpoint = assert_reads_as_written(model)
    assert list(checkpoint.components) == ["Transformer", "Dense"]
    assert checkpoint.components["Dense"].path == "2_Dense"
    assert set(checkpoint.components["Dense"].tensors) == {"linear.weight", "linear.bias"}
    assert checkpoint.components["Dense"].key("linear.bias") == "2_Dense/linear.bias"
    assert [module.kind for module in checkpoint.modules] == [
        "Transformer",
        "Pooling",
        "Dense",
        "Normalize",
    ]
    assert checkpoint.nbytes == sum(
        len(entry["data"])
        for file in model.rglob("*.safetensors")
        for _, entry in deserialize(file.read_bytes())
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_reads_as_it_is_stored(dtype: str, model: Path) -> None:
    checkpoint = assert_reads_as_written(cast(model, dtype))
    stored_as = {str(t.dtype) for t in checkpoint.components["Transformer"].tensors.values()}
    assert stored_as == {"F16" if dtype == "float16" else "BF16", "I64"}


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickle"])
def test_shards_read_as_one_model(pickled: bool, model: Path) -> None:
    whole = everything(open_checkpoint(model))
    shard(model, 20_000)
    if pickled:
        to_pickle(model)
    checkpoint = assert_reads_as_written(model)
    files = {tensor.file.name for tensor in checkpoint.components["Transformer"].tensors.values()}
    assert len(files) > 1
    assert everything(checkpoint).keys() == whole.keys()
    for name, (dtype, array) in everything(checkpoint).items():
        assert dtype == whole[name][0]
        np.testing.assert_array_equal(array, whole[name][1])


def test_a_pickle_reads_as_torch_reads_it(model: Path) -> None:
    checkpoint = assert_reads_as_written(to_pickle(model))
    files = {t.file.name for c in checkpoint.components.values() for t in c.tensors.values()}
    assert files == {PICKLE}


def test_safetensors_are_preferred_to_a_pickle_of_other_values(model: Path) -> None:
    truth = everything(open_checkpoint(model))
    torch.save({"embeddings.word_embeddings.weight": torch.zeros(2, 2)}, model / PICKLE)
    assert everything(open_checkpoint(model)).keys() == truth.keys()


def test_a_folder_without_modules_is_one_transformer(model: Path) -> None:
    (model / "modules.json").unlink()
    checkpoint = open_checkpoint(model)
    assert list(checkpoint.components) == ["Transformer"]
    assert checkpoint.modules == ()
    assert checkpoint.facts.keys() == {"vocabulary", "tokenizer", "config"}


def test_modules_come_in_the_order_of_the_file_as_they_run(model: Path) -> None:
    with changed_json(model / "modules.json") as modules:
        for index, module in enumerate(modules):
            module["idx"] = -index
    kinds = [module.kind for module in open_checkpoint(model).modules]
    assert kinds == ["Transformer", "Pooling", "Dense", "Normalize"]


def test_the_second_module_of_a_class_has_a_role_of_its_own(model: Path) -> None:
    shutil.copytree(model / "2_Dense", model / "4_Dense")
    with changed_json(model / "modules.json") as modules:
        modules.append({**modules[2], "idx": 4, "name": "4", "path": "4_Dense"})
    components = open_checkpoint(model).components
    assert list(components) == ["Transformer", "Dense", "Dense 2"]
    assert components["Dense 2"].path == "4_Dense"


def test_a_module_that_is_listed_twice_is_merged_once(model: Path) -> None:
    with changed_json(model / "modules.json") as modules:
        modules.append({**modules[2], "idx": 4, "name": "4", "path": "./2_Dense/"})
    assert list(open_checkpoint(model).components) == ["Transformer", "Dense"]


@pytest.mark.parametrize("config", ["router_config.json", "config.json"])
def test_the_modules_of_a_router_are_components(
    config: str, family: Family, tmp_path: Path
) -> None:
    router = tmp_path / "model" / "router"
    shutil.copytree(family.base, router / "document_0_Transformer")
    static = router / "query_0_StaticEmbedding"
    static.mkdir()
    save_file({"embedding.weight": torch.ones(4, 3)}, static / WEIGHTS)
    types = {
        "query_0_StaticEmbedding": "sentence_transformers.models.StaticEmbedding",
        "document_0_Transformer": "sentence_transformers.models.Transformer",
        "document_1_Pooling": "sentence_transformers.models.Pooling",
    }
    (router / config).write_text(json.dumps({"types": types, "structure": {}, "parameters": {}}))
    modules = [{"path": "router", "type": "sentence_transformers.models.Router"}]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    checkpoint = open_checkpoint(tmp_path / "model")
    assert {role: c.path for role, c in checkpoint.components.items()} == {
        "StaticEmbedding": "router/query_0_StaticEmbedding",
        "Transformer": "router/document_0_Transformer",
    }
    names = read_tensors(router / "document_0_Transformer")
    assert set(checkpoint.components["Transformer"].tensors) == {n for n in names if "/" not in n}
    assert checkpoint.facts["config"].value["hidden_size"] == 32
    assert "tokenizer" in checkpoint.facts


def test_a_router_may_be_the_model_folder_itself(family: Family, tmp_path: Path) -> None:
    folder = shutil.copytree(family.base, tmp_path / "model" / "document_0_Transformer").parent
    types = {"document_0_Transformer": "sentence_transformers.models.Transformer"}
    (folder / "router_config.json").write_text(json.dumps({"types": types}))
    modules = [{"path": "", "type": "sentence_transformers.models.Router"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert open_checkpoint(folder).components["Transformer"].path == "document_0_Transformer"


# --- pickles ------------------------------------------------------------------------------


def _unusual() -> dict[str, torch.Tensor]:
    """Tensors of every stored type, as views of every kind."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 10, generator=generator)
    cube = torch.randn(2, 3, 4, generator=generator)
    return {
        "matrix": matrix,
        "the same again": matrix,
        "parameter": torch.nn.Parameter(matrix[1]),
        "transposed": matrix.T,
        "every third": matrix[::2, 1::3],
        "last rows": matrix[4:],
        "column": matrix[:, 3],
        "permuted": cube.permute(2, 0, 1),
        "repeated": torch.arange(3.0).expand(4, 3),
        "one row of a transposed": cube.transpose(0, 2)[1:2],
        "channels last": torch.randn(1, 3, 2, 2).contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.5),
        "element": matrix[2, 2],
        "empty": torch.empty(0, 4),
        "empty view": matrix[3:3],
        "half": matrix.half().T,
        "bfloat16": matrix.bfloat16().T,
        "double": matrix.double().T,
        "long": torch.arange(12).reshape(3, 4).T,
        "int": torch.arange(5, dtype=torch.int32),
        "short": torch.arange(5, dtype=torch.int16),
        "signed": torch.arange(5, dtype=torch.int8),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
    }


def _save_of_older_torch(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """As older releases wrote it: nothing tells of alignment, so offsets are looked up."""
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        contents = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            if not name.endswith((".format_version", ".storage_alignment")):
                archive.writestr(name, content)


@pytest.mark.parametrize("save", [torch.save, _save_of_older_torch], ids=["new", "old"])
def test_views_and_shared_storage_in_a_pickle_read_as_torch_reads_them(
    save: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    path = tmp_path / PICKLE
    save(_unusual(), path)
    theirs = torch.load(path, weights_only=True)
    ours = read_pickle(path)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].shape == tuple(tensor.shape)
        assert ours[name].nbytes == tensor.numel() * tensor.element_size()
        assert stored(ours[name]) == raw(tensor)


def test_ranges_of_a_view_are_ranges_of_its_elements(tmp_path: Path) -> None:
    torch.save(_unusual(), tmp_path / PICKLE)
    for tensor in read_pickle(tmp_path / PICKLE).values():
        whole, size = stored(tensor), tensor.dtype.itemsize
        for start, stop in ((0, 1), (1, 2), (2, tensor.count), (tensor.count, tensor.count)):
            if stop <= tensor.count and start <= stop:
                assert stored(tensor, start, stop) == whole[start * size : stop * size]


def test_shared_storage_is_stored_once(tmp_path: Path) -> None:
    torch.save(_unusual(), tmp_path / PICKLE)
    tensors = read_pickle(tmp_path / PICKLE)
    assert tensors["matrix"].offset == tensors["the same again"].offset
    assert tensors["transposed"].offset == tensors["matrix"].offset
    assert tensors["parameter"].offset == tensors["matrix"].offset + 40


def test_what_is_none_in_a_state_dict_is_no_tensor(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2), "bias": None}, tmp_path / PICKLE)
    assert list(read_pickle(tmp_path / PICKLE)) == ["weight"]


# --- safetensors --------------------------------------------------------------------------

WHOLE_BYTES = [dtype for dtype in DType if dtype.bits % 8 == 0 and dtype.kind.value != "opaque"]

NAMES = st.text(max_size=20).filter(lambda name: name != "__metadata__" and name.isprintable())
TENSORS = st.dictionaries(
    NAMES,
    st.tuples(st.sampled_from(WHOLE_BYTES), st.lists(st.integers(0, 4), max_size=5).map(tuple)),
    max_size=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=TENSORS, seed=st.integers(0, 2**32 - 1))
def test_what_is_laid_out_reads_back_the_same_by_us_and_by_the_official_library(
    tensors: dict[str, tuple[DType, tuple[int, ...]]], seed: int, tmp_path: Path
) -> None:
    header, offsets, size = layout(tensors)
    data = np.random.default_rng(seed).bytes(size - len(header))
    path = tmp_path / WEIGHTS
    path.write_bytes(header + data)
    ours = read_header(path)
    theirs = dict(deserialize(header + data))
    assert len(header) % 8 == 0
    assert ours.keys() == theirs.keys() == tensors.keys()
    for name, (dtype, shape) in tensors.items():
        assert (str(dtype), list(shape)) == (theirs[name]["dtype"], theirs[name]["shape"])
        assert (ours[name].dtype, ours[name].shape) == (dtype, shape)
        assert ours[name].offset == offsets[name]
        assert offsets[name] % dtype.itemsize == 0
        assert stored(ours[name]) == bytes(theirs[name]["data"])


# --- names --------------------------------------------------------------------------------

NAME = "encoder.layer.0.output.dense.weight"


@pytest.mark.parametrize(
    "prefix",
    ["bert.", "0.auto_model.", "auto_model.", "model.", "0.auto_model.bert.", "roberta.", "mpnet."],
)
def test_prefixes_of_wrappers_do_not_count(prefix: str) -> None:
    assert bare(prefix + NAME) == NAME
    assert Matcher([NAME]).find(prefix + NAME) == NAME
    assert Matcher([prefix + NAME]).find(NAME) == prefix + NAME
    assert Matcher([prefix + NAME]).find("0.model." + NAME) == prefix + NAME


def test_a_name_within_a_name_is_no_prefix() -> None:
    assert bare("encoder.bert.weight") == "encoder.bert.weight"
    assert bare("bert.") == "bert."
    assert bare("bertish.weight") == "bertish.weight"
    assert Matcher(["encoder.bert.weight"]).find("encoder.weight") is None


def test_of_two_names_that_differ_in_prefixes_only_the_exact_one_is_found() -> None:
    matcher = Matcher(["bert." + NAME, "roberta." + NAME])
    assert matcher.find("bert." + NAME) == "bert." + NAME
    assert matcher.find("roberta." + NAME) == "roberta." + NAME
    assert matcher.find(NAME) is None
    assert matcher.find("model." + NAME) is None


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("shared.weight", "encoder.embed_tokens.weight"),
        ("encoder.embed_tokens.weight", "shared.weight"),
        ("model.embed_tokens.weight", "lm_head.weight"),
        ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
        ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
        ("model.embeddings.tok_embeddings.weight", "decoder.weight"),
    ],
)
def test_a_tied_tensor_is_found_by_either_name(mine: str, theirs: str) -> None:
    assert Matcher([mine]).find(theirs) == mine
    assert Matcher([mine, theirs]).find(theirs) == theirs
    assert Matcher(["other.weight"]).find(theirs) is None


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.position_ids",
        "bert.embeddings.token_type_ids",
        "rotary_emb.inv_freq",
        "inv_freq",
        "bn.num_batches_tracked",
    ],
)
def test_buffers_that_are_made_anew_are_known(name: str) -> None:
    assert is_derived_buffer(name)
    assert not is_derived_buffer(name + ".weight")
    assert not is_derived_buffer(name.replace("_", "") + "x")


# name: (group, depth), in models of three layers
BERT = {
    "embeddings.word_embeddings.weight": ("embeddings", 0.0),
    "embeddings.LayerNorm.bias": ("embeddings", 0.0),
    "encoder.layer.0.attention.self.query.weight": ("encoder.layer.0", 0.0),
    "encoder.layer.1.attention.self.query.weight": ("encoder.layer.1", 0.5),
    "encoder.layer.2.output.dense.bias": ("encoder.layer.2", 1.0),
    "pooler.dense.weight": ("head", 0.0),
}
MODERNBERT = {
    "model.embeddings.tok_embeddings.weight": ("embeddings", 0.0),
    "model.embeddings.norm.weight": ("embeddings", 0.0),
    "model.layers.0.attn.Wqkv.weight": ("model.layers.0", 0.0),
    "model.layers.1.mlp.Wi.weight": ("model.layers.1", 0.5),
    "model.layers.2.mlp_norm.weight": ("model.layers.2", 1.0),
    "model.final_norm.weight": ("head", 0.0),
    "head.dense.weight": ("head", 0.0),
}
QWEN3 = {
    "embed_tokens.weight": ("embeddings", 0.0),
    "layers.0.self_attn.q_proj.weight": ("layers.0", 0.0),
    "layers.1.self_attn.q_norm.weight": ("layers.1", 0.5),
    "layers.2.mlp.down_proj.weight": ("layers.2", 1.0),
    "norm.weight": ("head", 0.0),
    "lm_head.weight": ("head", 0.0),
}
T5 = {
    "shared.weight": ("embeddings", 0.0),
    "encoder.embed_tokens.weight": ("embeddings", 0.0),
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
        "encoder.block.0",
        0.0,
    ),
    "encoder.block.1.layer.0.SelfAttention.q.weight": ("encoder.block.1", 0.5),
    "encoder.block.2.layer.1.DenseReluDense.wo.weight": ("encoder.block.2", 1.0),
    "encoder.final_layer_norm.weight": ("head", 0.0),
    "decoder.block.0.layer.2.layer_norm.weight": ("decoder.block.0", 0.0),
    "decoder.block.1.layer.2.layer_norm.weight": ("decoder.block.1", 1.0),
    "2_Dense/linear.weight": ("head", 0.0),
}


@pytest.mark.parametrize("expected", [BERT, MODERNBERT, QWEN3, T5])
def test_depth_runs_from_the_first_layer_to_the_last(
    expected: dict[str, tuple[str, float]],
) -> None:
    found = places(expected)
    assert {name: (place.group, place.depth) for name, place in found.items()} == expected


def test_the_only_layer_is_at_the_input() -> None:
    assert places(["layers.0.weight"])["layers.0.weight"].depth == 0.0


def test_every_tensor_of_a_real_model_has_a_place(tmp_path: Path) -> None:
    names = read_tensors(build_t5_encoder(tmp_path / "t5", 0, layers=3))
    found = places(names)
    assert found.keys() == names.keys()
    assert {place.group for place in found.values()} == {
        "embeddings",
        "head",
        *(f"encoder.block.{i}" for i in range(3)),
    }


# --- the shell ----------------------------------------------------------------------------


def agree(left: Path, right: Path, aspect: str) -> bool:
    """True when two folders say the same on an aspect, whichever of them is asked first."""
    mine, theirs = open_checkpoint(left).facts[aspect], open_checkpoint(right).facts[aspect]
    assert same(mine, theirs) == same(theirs, mine)
    return same(mine, theirs)


POOLINGS: dict[str, tuple[Any, Any, bool]] = {
    "mean": ({"pooling_mode_mean_tokens": True}, {"pooling_mode": "mean"}, True),
    "cls": ({"pooling_mode_cls_token": True}, {"pooling_mode": "cls"}, True),
    "max": ({"pooling_mode_max_tokens": True}, {"pooling_mode": ["max"]}, True),
    "lasttoken": ({"pooling_mode_lasttoken": True}, {"pooling_mode": "lasttoken"}, True),
    "weightedmean": (
        {"pooling_mode_weightedmean_tokens": True, "pooling_mode_mean_tokens": False},
        {"pooling_mode": "weightedmean"},
        True,
    ),
    "nothing said": ({}, {"pooling_mode": "mean"}, True),
    "two": (
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode": ["cls", "mean"]},
        True,
    ),
    "two in another order": (
        {"pooling_mode": ["mean", "cls"]},
        {"pooling_mode": ["cls", "mean"]},
        False,
    ),
    "mean and cls": ({"pooling_mode_mean_tokens": True}, {"pooling_mode": "cls"}, False),
    "with the prompt": (
        {"pooling_mode": "mean", "include_prompt": True},
        {"pooling_mode": "mean", "embedding_dimension": 32},
        True,
    ),
    "without the prompt": (
        {"pooling_mode": "mean", "include_prompt": False},
        {"pooling_mode": "mean"},
        False,
    ),
}


@pytest.mark.parametrize("case", POOLINGS)
def test_pooling_is_compared_by_what_it_does(case: str, family: Family, model: Path) -> None:
    old, new, expected = POOLINGS[case]
    other = shutil.copytree(family.base, model.parent / "other")
    for folder, config in ((model, old), (other, new)):
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert agree(model, other, "pooling") is expected


def test_pooling_is_spoken_of_in_words(family: Family, model: Path) -> None:
    with changed_json(model / "1_Pooling" / "config.json") as config:
        config.clear()
        config["pooling_mode_cls_token"] = True
    mine, theirs = open_checkpoint(model).facts, open_checkpoint(family.base).facts
    assert difference(mine["pooling"], theirs["pooling"]) == ("[CLS]", "mean")
    assert mine["pooling"].file == "1_Pooling/config.json"


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ({"query": "", "document": ""}, {}, True),
        ({"query": "", "document": ""}, None, True),
        ({"query": "", "passage": "p: "}, {"passage": "p: "}, True),
        ({"query": "q: "}, {"query": "q: "}, True),
        ({"query": "q: "}, {"query": "q:"}, False),
        ({"query": "q: "}, {}, False),
    ],
)
def test_empty_prompts_are_none(
    mine: Any, theirs: Any, expected: bool, family: Family, model: Path
) -> None:
    other = shutil.copytree(family.base, model.parent / "other")
    for folder, prompts in ((model, mine), (other, theirs)):
        with changed_json(folder / "config_sentence_transformers.json") as config:
            config["prompts"] = prompts
    assert agree(model, other, "prompts") is expected


def test_the_default_prompt_counts_only_when_it_says_something(family: Family, model: Path) -> None:
    other = shutil.copytree(family.base, model.parent / "other")
    for folder in (model, other):
        with changed_json(folder / "config_sentence_transformers.json") as config:
            config["prompts"] = {"query": "", "passage": "p: "}
            config["default_prompt_name"] = "query" if folder is model else None
    assert agree(model, other, "prompts")
    with changed_json(other / "config_sentence_transformers.json") as config:
        config["default_prompt_name"] = "passage"
    assert not agree(model, other, "prompts")


def test_normalisation_is_a_module(family: Family, model: Path) -> None:
    with changed_json(model / "modules.json") as modules:
        modules.pop()
    assert not agree(model, family.base, "normalisation")


DENSES: dict[str, tuple[dict[str, Any], bool]] = {
    # what is made of the configuration of a Dense: whether it is then still the same
    "module_input_name": ({"module_input_name": None}, True),
    "an older release's": (
        {"module_input_name": None, "module_output_name": None, "use_residual": None},
        True,
    ),
    "Tanh by its old name": ({"activation_function": "torch.nn.modules.activation.Tanh"}, True),
    "another activation": ({"activation_function": "torch.nn.modules.linear.Identity"}, False),
    "a residual": ({"use_residual": True}, False),
    "another output": ({"module_output_name": "token_embeddings"}, False),
}


@pytest.mark.parametrize("case", DENSES)
def test_a_dense_is_compared_with_its_defaults_filled_in(
    case: str, family: Family, model: Path
) -> None:
    changes, expected = DENSES[case]
    with changed_json(model / "2_Dense" / "config.json") as config:
        config.update(changes)
        for key in [key for key in config if config[key] is None]:
            del config[key]
    assert agree(model, family.base, "other_modules") is expected


def test_a_dense_more_is_a_disagreement(family: Family, model: Path) -> None:
    with changed_json(model / "modules.json") as modules:
        del modules[2]
    assert not agree(model, family.base, "other_modules")


def _truncation(content: dict[str, Any]) -> None:
    content["truncation"] = {"max_length": 7, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {"strategy": {"Fixed": 64}, "pad_id": 0}


def _strict_merges(content: dict[str, Any]) -> None:
    content["model"]["merges"] = ["a b", "ab c"]


def _pairs(content: dict[str, Any]) -> None:
    content["model"]["merges"] = [["a", "b"], ["ab", "c"]]


def _other_pairs(content: dict[str, Any]) -> None:
    content["model"]["merges"] = [["a", "b"], ["ab", "d"]]


def _other_word(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["zebra"] = content["model"]["vocab"].pop("you")


def _other_case(content: dict[str, Any]) -> None:
    content["normalizer"]["lowercase"] = not content["normalizer"]["lowercase"]


def _other_added_token(content: dict[str, Any]) -> None:
    content["added_tokens"].append({"id": 9999, "content": "<new>", "special": False})


def _nothing(content: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize(
    ("mine", "theirs", "differs"),
    [
        (_nothing, _truncation, None),
        (_strict_merges, _pairs, None),
        (_pairs, _other_pairs, "tokenizer"),
        (_nothing, _other_word, "vocabulary"),
        (_nothing, _other_case, "tokenizer"),
        (_nothing, _other_added_token, "vocabulary"),
    ],
)
def test_tokenizers_are_compared_by_what_they_make_of_text(
    mine: Callable[[dict[str, Any]], None],
    theirs: Callable[[dict[str, Any]], None],
    differs: str | None,
    family: Family,
    model: Path,
) -> None:
    other = shutil.copytree(family.base, model.parent / "other")
    for folder, change in ((model, mine), (other, theirs)):
        with changed_json(folder / "tokenizer.json") as content:
            change(content)
    for aspect in ("vocabulary", "tokenizer"):
        assert agree(model, other, aspect) is (aspect != differs)


CONFIGS: dict[str, tuple[dict[str, Any], bool]] = {
    "the version": ({"transformers_version": "4.0.0"}, True),
    "the stored type": ({"torch_dtype": "float16", "dtype": "bfloat16"}, True),
    "the class": ({"architectures": ["BertForMaskedLM"]}, True),
    "the origin": ({"_name_or_path": "elsewhere"}, True),
    "dropout": ({"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.0}, True),
    "labels": ({"id2label": {"0": "yes"}}, True),
    "a key that only one has": ({"a_new_key": 1}, True),
    "the activation": ({"hidden_act": "relu"}, False),
    "the heads": ({"num_attention_heads": 8}, False),
    "epsilon": ({"layer_norm_eps": 1e-5}, False),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_are_compared_by_what_the_model_computes(
    case: str, family: Family, model: Path
) -> None:
    changes, expected = CONFIGS[case]
    with changed_json(model / "config.json") as config:
        config.update(changes)
    assert agree(model, family.base, "config") is expected


def test_a_disagreement_names_the_key_and_both_values(family: Family, model: Path) -> None:
    with changed_json(model / "config.json") as config:
        config["hidden_act"] = "relu"
    mine, theirs = (
        open_checkpoint(model).facts["config"],
        open_checkpoint(family.base).facts["config"],
    )
    assert difference(mine, theirs) == ("hidden_act='relu'", "hidden_act='gelu'")


# --- where models are ---------------------------------------------------------------------


def test_a_path_counts_from_the_first_folder_then_from_the_second(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first / "both", second / "both", second / "sub" / "one"):
        folder.mkdir(parents=True)
    assert locate("both", (first, second)) == first / "both"
    assert locate("sub/one", (first, second)) == second / "sub" / "one"
    assert locate("../second/both", (first,)) == first / "../second/both"
    assert locate(str(second / "both"), (first,)) == second / "both"


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert locate("~/model", (Path(),)) == tmp_path / "model"


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")
    with pytest.raises(NotFoundError, match="is a file; a model is a folder"):
        locate("model", (tmp_path,))


@pytest.mark.parametrize("reference", ["./gone", "../gone", "a/b/gone", "~nobody-at-all/gone"])
def test_what_is_no_hub_id_is_not_looked_for_there(reference: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as missing:
        locate(reference, (tmp_path,))
    assert "gone" in str(missing.value)
    assert "Hub" not in str(missing.value)


@pytest.mark.parametrize("reference", ["a" * 300, "a/" * 3000, "a\0b", "org/name\n", "-/-", "a--b"])
def test_what_cannot_be_a_path_or_a_hub_id_is_not_found(reference: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        locate(reference, (tmp_path,))


class Hub:
    """The cache of the Hub's client, made by hand."""

    def __init__(self, root: Path):
        self.root = root

    def add(self, repository: str, commit: str, names: tuple[str, ...] = (), **files: str) -> Path:
        """A cached snapshot, its files links to blobs, and the branches or tags that lead to it."""
        base = self.root / f"models--{repository.replace('/', '--')}"
        snapshot = base / "snapshots" / commit
        for folder in (base / "blobs", base / "refs", snapshot):
            folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (base / "blobs" / f"{commit}-{name}").write_text(content)
            (snapshot / name).symlink_to(Path("../../blobs") / f"{commit}-{name}")
        for name in names:
            (base / "refs" / name).write_text(commit)
        return snapshot


MAIN, TAGGED = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty cache, in the place of this machine's; there is no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return Hub(tmp_path / "hub")


def test_a_hub_id_is_found_in_the_cache_without_a_network(hub: Hub, tmp_path: Path) -> None:
    snapshot = hub.add("org/name", MAIN, ("main",), **{WEIGHTS: "", "config.json": "{}"})
    assert locate("org/name", (tmp_path,)) == snapshot
    assert (locate("org/name", (tmp_path,)) / "config.json").read_text() == "{}"


def test_a_revision_is_found_in_the_cache_without_a_network(hub: Hub, tmp_path: Path) -> None:
    main = hub.add("org/name", MAIN, ("main",), **{WEIGHTS: ""})
    tagged = hub.add("org/name", TAGGED, ("v1.0",), **{PICKLE: ""})
    assert locate("org/name@main", (tmp_path,)) == main
    assert locate("org/name@v1.0", (tmp_path,)) == tagged
    assert locate(f"org/name@{TAGGED}", (tmp_path,)) == tagged


def test_a_folder_goes_before_a_hub_id(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/name", MAIN, ("main",), **{WEIGHTS: ""})
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert locate("org/name", (tmp_path,)) == tmp_path / "org" / "name"


@pytest.mark.parametrize("reference", ["org/gone", "gone", "org/name@gone", f"org/name@{TAGGED}"])
def test_a_model_that_is_nowhere_is_missed_in_both_places(
    reference: str, hub: Hub, tmp_path: Path
) -> None:
    hub.add("org/name", MAIN, ("main",), **{WEIGHTS: ""})
    with pytest.raises(NotFoundError) as missing:
        locate(reference, (tmp_path / "first", tmp_path / "second"))
    message = str(missing.value)
    assert str(tmp_path / "first" / reference) in message
    assert str(tmp_path / "second" / reference) in message
    assert f"{reference} is not in the Hub's cache and HF_HUB_OFFLINE is set" in message


# --- parsing without a search for garbage ---------------------------------------------------------


def test_garbage_is_searched_for_again_once_the_last_thread_has_parsed() -> None:
    entered, leave = threading.Barrier(2, timeout=10), threading.Event()

    def other() -> None:
        with uncollected:
            entered.wait()
            assert leave.wait(10)

    thread = threading.Thread(target=other)
    with uncollected:
        thread.start()
        entered.wait()
    assert not gc.isenabled(), "the other thread parses on"
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_a_process_that_never_searches_for_garbage_is_left_so() -> None:
    gc.disable()
    try:
        with uncollected, uncollected:
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_header_is_parsed_without_a_search_for_garbage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[str] = []

    def told(phase: str, facts: dict[str, int]) -> None:
        searches.append(phase)

    entries = ", ".join(
        f'"t{i}": {{"dtype": "U8", "shape": [1], "data_offsets": [{i}, {i + 1}]}}'
        for i in range(20_000)
    )
    header = f"{{{entries}}}".encode()
    path = tmp_path / WEIGHTS
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(20_000))
    loads = json.loads

    def parsed(*arguments: Any, **options: Any) -> Any:
        searches.clear()
        found = loads(*arguments, **options)
        assert searches == []
        return found

    monkeypatch.setattr(safetensors_file.json, "loads", parsed)
    gc.callbacks.append(told)
    try:
        assert len(read_header(path)) == 20_000
    finally:
        gc.callbacks.remove(told)
