"""Tiny embedding models of real architectures, in the layouts they have on disk.

Two layers and a few dozen dimensions, made and saved by the classes of transformers and
sentence-transformers: `SentenceTransformer(str(path))` loads every folder made here. Every byte
follows from the seed and the options; nothing is downloaded.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
from reference import FORMATS, float64_from_storage

# torch and the model classes take seconds to import: only the functions that need them do.
if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_TOKENS = 64
NOISE = 0.02

_TEXT = """
a about after all an and animal answer apple are as at be bird black blue boat book boom bread
brown but by can car cat child city cold come cook could day did do document dog door down drink
eat every eye fast find fire first fish for fox friend from garden girl give go good great green
ground had hand has have he her here high hill him his home horse hot house how i if in is it its
jump jumps key know lake language large last lazy leave letter light like line little long look
love make man map merge milk model moon more morning mountain music my near new night no not now
of old on one open or other our out over paper passage people place plant play query question
quick rain read red river road run runs school sea search see sentence she ship sing sky sleep
slow small snow so some song star stone story street sun table tall tea than that the their them
then there these they thing this time to tree two under up very vector walk wall warm was water
way we weather what when where which white who why wind window winter with word work world write
year yellow you young
"""
WORDS = _TEXT.split()
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;?!'-"

_INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}


# --- architectures ------------------------------------------------------------------------


def build_minilm(
    path: Path,
    seed: int,
    dense: bool = False,
    *,
    pooling: str = "mean",
    prompts: Mapping[str, str] | None = None,
    normalize: bool = True,
    hidden_size: int = 32,
    layers: int = 2,
    position_ids: bool = False,
) -> Path:
    """A BERT as all-MiniLM-L6-v2 is one: WordPiece, mean pooling, Normalize; perhaps a 2_Dense.

    `position_ids` adds the int64 tensor embeddings.position_ids that older releases stored.
    """
    from transformers import BertConfig, BertModel, BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *CHARACTERS, *(f"##{c}" for c in CHARACTERS), *WORDS]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=MAX_TOKENS,
    )
    _save(
        path,
        seed,
        lambda: BertModel(config),
        BertTokenizer(vocab=vocabulary, model_max_length=MAX_TOKENS),
        _Head(pooling, prompts, dense, normalize),
    )
    if position_ids:
        import torch

        def with_position_ids(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return tensors | {"embeddings.position_ids": torch.arange(MAX_TOKENS).reshape(1, -1)}

        _rewrite(path / "model.safetensors", with_position_ids)
    return path


def build_modernbert(
    path: Path,
    seed: int,
    dense: bool = False,
    *,
    pooling: str = "cls",
    prompts: Mapping[str, str] | None = None,
    normalize: bool = False,
    hidden_size: int = 32,
    layers: int = 2,
) -> Path:
    """A ModernBERT: byte-level BPE, rotary positions, fused Wqkv and Wi, no biases."""
    from tokenizers.processors import TemplateProcessing
    from transformers import ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast

    special = ["[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]"]
    backend = _byte_level_bpe(special)
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 0), ("[SEP]", 1)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=MAX_TOKENS,
        local_attention=16,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    head = _Head(pooling, prompts, dense, normalize)
    return _save(path, seed, lambda: ModernBertModel(config), tokenizer, head)


def build_xlm_roberta(
    path: Path,
    seed: int,
    dense: bool = False,
    *,
    pooling: str = "mean",
    prompts: Mapping[str, str] | None = None,
    normalize: bool = True,
    hidden_size: int = 32,
    layers: int = 2,
) -> Path:
    """An XLM-RoBERTa as multilingual-e5 is one: SentencePiece unigrams, positions from 2 on."""
    from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = [*((token, 0.0) for token in special), *_unigrams(), ("<mask>", 0.0)]
    config = XLMRobertaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=MAX_TOKENS + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    return _save(
        path,
        seed,
        lambda: XLMRobertaModel(config),
        XLMRobertaTokenizer(vocab=vocabulary, model_max_length=MAX_TOKENS),
        _Head(pooling, prompts, dense, normalize),
    )


def build_qwen3(
    path: Path,
    seed: int,
    dense: bool = False,
    *,
    pooling: str = "lasttoken",
    prompts: Mapping[str, str] | None = None,
    normalize: bool = True,
    hidden_size: int = 32,
    layers: int = 2,
) -> Path:
    """A Qwen3-Embedding: a decoder pooled at its last token, padded on the left, with prompts.

    Its 4 attention heads share 2 keys and are wider than hidden_size / 4, as in the real one.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

    if prompts is None:
        task = "Given a question, find the passage that answers it"
        prompts = {"query": f"Instruct: {task}\nQuery:", "document": ""}
    end = "<|endoftext|>"
    model = json.loads(_byte_level_bpe([]).to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]  # what BPE takes; hinted as strings
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"], merges=merges, model_max_length=MAX_TOKENS, padding_side="left"
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}",
        pair=f"$A {end} $B {end}",
        special_tokens=[(end, tokenizer.convert_tokens_to_ids(end))],
    )
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden_size // 2,
        intermediate_size=3 * hidden_size,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    head = _Head(pooling, prompts, dense, normalize)
    return _save(path, seed, lambda: Qwen3Model(config), tokenizer, head)


def build_t5_encoder(
    path: Path,
    seed: int,
    dense: bool = True,
    *,
    pooling: str = "mean",
    prompts: Mapping[str, str] | None = None,
    normalize: bool = True,
    hidden_size: int = 32,
    layers: int = 2,
) -> Path:
    """The encoder of a T5 as sentence-t5 is one: relative positions, no biases, a 2_Dense."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    sentinels = 4
    extra = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(sentinels))]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *_unigrams(), *extra]
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=hidden_size,
        d_kv=hidden_size // 4,
        d_ff=2 * hidden_size,
        num_layers=layers,
        num_heads=4,
    )
    return _save(
        path,
        seed,
        lambda: T5EncoderModel(config),
        T5Tokenizer(vocab=vocabulary, extra_ids=sentinels, model_max_length=MAX_TOKENS),
        _Head(pooling, prompts, dense, normalize, dense_is_linear=True),
    )


ARCHITECTURES: dict[str, Callable[..., Path]] = {
    "minilm": build_minilm,
    "modernbert": build_modernbert,
    "xlm_roberta": build_xlm_roberta,
    "qwen3": build_qwen3,
    "t5_encoder": build_t5_encoder,
}


# --- what is done to a folder -------------------------------------------------------------


def perturb(source: Path, target: Path, seed: int, scale: float = 0.01) -> Path:
    """A fine-tuned copy of the folder `source`: N(0, scale * std) added to every float tensor.

    `target` must not exist yet. The noise of a tensor follows from the seed and its name alone,
    whatever the sharding; a tensor without spread counts as one of std 1. Dtypes stay.
    """
    import torch

    shutil.copytree(source, target)
    for file in _weight_files(target):
        folder = _prefix(target, file)

        def noisy(tensors: dict[str, Any], folder: str = folder) -> dict[str, Any]:
            result = {}
            for name, tensor in tensors.items():
                if tensor.is_floating_point():
                    random = np.random.default_rng([seed, zlib.crc32((folder + name).encode())])
                    wide = tensor.to(torch.float64)
                    spread = float(wide.std(correction=0)) or 1.0
                    noise = random.normal(0.0, scale * spread, tuple(tensor.shape))
                    tensor = (wide + torch.from_numpy(np.asarray(noise))).to(tensor.dtype)
                result[name] = tensor
            return result

        _rewrite(file, noisy)
    return target


def cast(path: Path, dtype: str) -> Path:
    """Turn every float tensor of the folder, in place, to "float32", "bfloat16" or "float16"."""
    import torch

    target = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    for file in _weight_files(path):
        _rewrite(
            file,
            lambda tensors: {
                name: tensor.to(target) if tensor.is_floating_point() else tensor
                for name, tensor in tensors.items()
            },
        )
    config = json.loads((path / "config.json").read_text())
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in _indices(path):
        index = json.loads(file.read_text())
        shards = {file.with_name(name) for name in index["weight_map"].values()}
        tensors = [tensor for shard in shards for tensor in _load(shard)[0].values()]
        index["metadata"]["total_size"] = sum(tensor.nbytes for tensor in tensors)
        _write_index(file, index)
    return path


def shard(path: Path, max_shard_bytes: int) -> Path:
    """Split the folder's model.safetensors, in place, the way `save_pretrained` does.

    ValueError if everything would fit into one shard: that would leave the file as it is.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    single = path / "model.safetensors"
    tensors, metadata = _load(single)
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_bytes)
    if not split.is_sharded:
        raise ValueError(f"{single} fits into one shard of {max_shard_bytes} bytes")
    for name, members in split.filename_to_tensors.items():
        save_file({key: tensors[key] for key in members}, path / name, metadata)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    index = {
        "metadata": {"total_parameters": parameters, **split.metadata},
        "weight_map": split.tensor_to_filename,
    }
    _write_index(path / "model.safetensors.index.json", index)
    single.unlink()
    return path


def to_pickle(path: Path) -> Path:
    """Replace every safetensors file of the folder by a pytorch_model.bin in torch's zip format."""
    import torch

    for file in _weight_files(path):
        torch.save(_load(file)[0], _pickle_name(file))
        file.unlink()
    for file in _indices(path):
        index = json.loads(file.read_text())
        index["weight_map"] = {
            key: _pickle_name(Path(name)).name for key, name in index["weight_map"].items()
        }
        _write_index(file.with_name("pytorch_model.bin.index.json"), index)
        file.unlink()
    return path


def read_tensors(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Every tensor of a model folder: {"2_Dense/linear.weight": (safetensors dtype, values)}.

    Sorted by name; tensors at the top of the folder keep their plain names. Values are float64
    (exact) for float dtypes, else of the stored integer or boolean type. Files are parsed by the
    official safetensors library (a pytorch_model.bin by torch). ValueError if an index and its
    shards disagree, or if a tensor lies in two files.
    """
    result: dict[str, tuple[str, np.ndarray]] = {}
    where: dict[str, Path] = {}
    for file in _weight_files(path):
        prefix = _prefix(path, file)
        for name, dtype, values in _read_file(file):
            if prefix + name in result:
                raise ValueError(f"{prefix + name} is in {where[prefix + name]} and in {file}")
            result[prefix + name] = (dtype, values)
            where[prefix + name] = file
    for index in _indices(path):
        prefix = _prefix(path, index)
        listed = json.loads(index.read_text())["weight_map"]
        beside = {name: file.name for name, file in where.items() if file.parent == index.parent}
        if {prefix + name: file for name, file in listed.items()} != beside:
            raise ValueError(f"{index} does not list what lies beside it")
    return dict(sorted(result.items()))


def embed(path: Path, sentences: Sequence[str], prompt_name: str | None = None) -> np.ndarray:
    """float32 embeddings (sentences, dimension) by SentenceTransformer on the CPU, in float32."""
    from sentence_transformers import SentenceTransformer

    with _quiet():
        # float32 whatever is stored: the difference of two embeddings is then that of the weights.
        model = SentenceTransformer(
            str(path), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"}
        )
        vectors = model.encode(list(sentences), prompt_name=prompt_name, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32)


# --- parts --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Head:
    """What comes after the transformer: pooling mode, prompts, and whether Dense and Normalize."""

    pooling: str
    prompts: Mapping[str, str] | None
    dense: bool
    normalize: bool
    dense_is_linear: bool = False


def _save(
    path: Path,
    seed: int,
    make_model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    head: _Head,
) -> Path:
    """Write the sentence-transformers folder `path`, its weights drawn from `seed`."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Dense,
        Normalize,
        Pooling,
        Transformer,
    )

    with _quiet(), TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make_model()
        with torch.no_grad():  # biases, norms and padding are ones and zeros so far: train them
            for parameter in model.parameters():
                if parameter.ndim < 2:
                    parameter.add_(torch.randn_like(parameter) * NOISE)
            for module in model.modules():
                if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                    module.weight[module.padding_idx].normal_(0.0, NOISE)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder)
        size = int(model.config.hidden_size)
        modules: list[torch.nn.Module] = [transformer, Pooling(size, head.pooling)]
        if head.dense:
            linear = head.dense_is_linear
            activation = None if linear else torch.nn.Tanh()
            modules.append(Dense(size, size // 2, not linear, activation))
        if head.normalize:
            modules.append(Normalize())
        prompts = None if head.prompts is None else dict(head.prompts)
        SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save(str(path))
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of transformers meanwhile."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _byte_level_bpe(special: Sequence[str]) -> Tokenizer:
    """A byte-level BPE that has learnt WORDS, with and without a space before; any text encodes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*WORDS, *(f" {word}" for word in WORDS)], trainer)
    return tokenizer


def _unigrams() -> list[tuple[str, float]]:
    """SentencePiece pieces and log-probabilities: words, and characters as a last resort."""
    words = [(f"▁{word}", -2.0 - i / len(WORDS)) for i, word in enumerate(WORDS)]
    characters = [(character, -10.0) for character in CHARACTERS + ascii_uppercase]
    return [("▁", -4.0), *words, *characters]


def _weight_files(path: Path) -> list[Path]:
    return sorted([*path.rglob("*.safetensors"), *path.rglob("pytorch_model*.bin")])


def _indices(path: Path) -> list[Path]:
    return sorted(path.rglob("*.index.json"))


def _prefix(path: Path, file: Path) -> str:
    """ "2_Dense/" for a file in that folder of the model, "" at its top."""
    folder = file.parent.relative_to(path).as_posix()
    return "" if folder == "." else f"{folder}/"


def _pickle_name(file: Path) -> Path:
    """model-00001-of-00002.safetensors -> pytorch_model-00001-of-00002.bin"""
    return file.with_name(f"pytorch_{file.stem}.bin")


def _write_index(file: Path, index: dict[str, Any]) -> None:
    file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _load(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str] | None]:
    """The tensors of one weight file, and the metadata of a safetensors file."""
    if file.suffix == ".bin":
        import torch

        return torch.load(file, map_location="cpu", weights_only=True), None
    with safetensors.safe_open(file, "pt") as opened:
        names = opened.keys()  # no mapping, only this list
        return {name: opened.get_tensor(name) for name in names}, opened.metadata()


def _rewrite(
    file: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    """Replace the tensors of one weight file by `change` of them; format and metadata stay."""
    tensors, metadata = _load(file)
    if file.suffix == ".bin":
        import torch

        torch.save(change(tensors), file)
    else:
        from safetensors.torch import save_file

        save_file(change(tensors), file, metadata)


def _read_file(file: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, safetensors dtype, values) of every tensor of one weight file."""
    if file.suffix == ".bin":
        from safetensors.torch import save

        raw = save({name: tensor.contiguous() for name, tensor in _load(file)[0].items()})
    else:
        raw = file.read_bytes()
    for name, entry in safetensors.deserialize(raw):
        dtype, shape, data = entry["dtype"], entry["shape"], bytes(entry["data"])
        if dtype in FORMATS:
            yield name, dtype, float64_from_storage(data, dtype, shape)
        else:
            yield name, dtype, np.frombuffer(data, dtype=_INTEGERS[dtype]).reshape(shape)
