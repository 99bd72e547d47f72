"""Random checkpoints of real shapes, made in seconds: what the benchmarks merge."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 2**20
"""Elements that are drawn at a time."""

RECORD = "made.json"
"""Says what a folder of models was made as; written last, so it marks a whole one."""

Shapes = Mapping[str, Sequence[int]]


# --- a BERT in float32, one file ----------------------------------------------------------


def bert(rows: int, width: int, layers: int) -> dict[str, list[int]]:
    """Tensors of a BERT with this vocabulary, width and depth."""
    found = {"embeddings.word_embeddings.weight": [rows, width]}
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            found[f"{prefix}.attention.self.{part}.weight"] = [width, width]
        found[f"{prefix}.attention.output.dense.weight"] = [width, width]
        found[f"{prefix}.intermediate.dense.weight"] = [4 * width, width]
        found[f"{prefix}.output.dense.weight"] = [width, 4 * width]
        found[f"{prefix}.output.LayerNorm.weight"] = [width]
    return found


def write_bert(path: Path, wanted: Shapes, seed: int) -> Path:
    """A folder of random float32 tensors around those of seed 0."""
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "bert"}')
    base, noise = np.random.default_rng(0), np.random.default_rng(seed)
    with (path / "model.safetensors").open("wb") as file:
        file.write(header(wanted, "F32", 4))
        for shape in wanted.values():
            for _, count in chunks(shape):
                values = base.standard_normal(count, dtype=np.float32) * np.float32(0.02)
                if seed:
                    values += noise.standard_normal(count, dtype=np.float32) * np.float32(0.002)
                file.write(values.tobytes())
    return path


def header(wanted: Shapes, dtype: str, itemsize: int) -> bytes:
    """The head of a safetensors file whose tensors lie in the order of `wanted`."""
    found: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in wanted.items():
        end = position + itemsize * int(np.prod(shape))
        found[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(found).encode()
    text += b" " * (-len(text) % 8)  # as the library does: the data starts at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def chunks(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, count) of the pieces in which a tensor is drawn."""
    total = int(np.prod(shape))
    for start in range(0, total, CHUNK):
        yield start, min(CHUNK, total - start)


# --- a Qwen3 in bfloat16, in shards -------------------------------------------------------


@dataclass(frozen=True)
class Qwen3:
    """The size of a Qwen3 embedding model, and the most bytes that one of its files may have."""

    rows: int
    width: int
    layers: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_dim: int
    shard_bytes: int

    def tensors(self) -> dict[str, list[int]]:
        """Names, as Qwen3Model saves them, and shapes; the input's table has no separate head."""
        found = {"embed_tokens.weight": [self.rows, self.width]}
        queries, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        for layer in range(self.layers):
            for name, shape in {
                "input_layernorm": [self.width],
                "mlp.down_proj": [self.width, self.intermediate],
                "mlp.gate_proj": [self.intermediate, self.width],
                "mlp.up_proj": [self.intermediate, self.width],
                "post_attention_layernorm": [self.width],
                "self_attn.k_norm": [self.head_dim],
                "self_attn.k_proj": [keys, self.width],
                "self_attn.o_proj": [self.width, queries],
                "self_attn.q_norm": [self.head_dim],
                "self_attn.q_proj": [queries, self.width],
                "self_attn.v_proj": [keys, self.width],
            }.items():
                found[f"layers.{layer}.{name}.weight"] = shape
        found["norm.weight"] = [self.width]
        return found

    def shards(self) -> dict[str, dict[str, list[int]]]:
        """{file: its tensors}, in order, each file as full as `shard_bytes` lets it be."""
        parts: list[dict[str, list[int]]] = [{}]
        filled = 0
        for name, shape in self.tensors().items():
            size = 2 * int(np.prod(shape))
            if filled and filled + size > self.shard_bytes:
                parts.append({})
                filled = 0
            parts[-1][name] = shape
            filled += size
        return {
            f"model-{number:05d}-of-{len(parts):05d}.safetensors": part
            for number, part in enumerate(parts, 1)
        }

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(2 * int(np.prod(shape)) for shape in self.tensors().values())

    def config(self) -> dict[str, Any]:
        """What config.json says."""
        return {
            "architectures": ["Qwen3Model"],
            "attention_bias": False,
            "eos_token_id": 0,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.width,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 32768,
            "model_type": "qwen3",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.key_value_heads,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "vocab_size": self.rows,
        }


QWEN3: dict[str, Qwen3] = {
    "tiny": Qwen3(600, 64, 2, 192, 4, 2, 32, 150_000),
    # Qwen3-Embedding-0.6B
    "qwen3": Qwen3(151_669, 1024, 28, 3072, 16, 8, 128, 500_000_000),
    # the widths of Qwen3-1.7B, and as many layers as make 4 GB
    "large": Qwen3(151_936, 2048, 34, 6144, 16, 8, 128, 1_000_000_000),
}


@dataclass(frozen=True)
class Models:
    """Model folders that belong together."""

    base: Path
    members: Sequence[Path]


def qwen3_models(folder: Path, size: Qwen3, members: int = 4) -> Models:
    """A base and members around it in `folder`, which is used again when it is a whole one.

    A member is the base plus noise of 1 % of the base's spread, both rounded to bfloat16. That is
    one or two steps of bfloat16: deltas tie as often as those of real fine-tunes.
    ValueError if `folder` holds something else, or the disk is too small.
    """
    names = ["base", *(f"member{number}" for number in range(1, members + 1))]
    record = {"format": 1, "size": asdict(size), "models": names}
    if not folder.exists():
        _refuse_small_disk(folder, size.nbytes() * len(names))
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name in names:
            _write_shell(partial / name, size)
        shards = [(number, *shard) for number, shard in enumerate(size.shards().items())]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda shard: _write_shard(partial, names, *shard), shards))
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        partial.rename(folder)
    marker = folder / RECORD
    if not marker.is_file() or json.loads(marker.read_text()) != record:
        raise ValueError(f"{folder} was not made for this benchmark as it is now; remove it")
    return Models(folder / names[0], [folder / name for name in names[1:]])


def _refuse_small_disk(folder: Path, needed: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise ValueError(f"{folder.parent} has {free:,} bytes free, the models take {needed:,}")


def _write_shard(
    folder: Path, names: Sequence[str], number: int, file: str, wanted: Shapes
) -> None:
    """One file of every model; the base is drawn once for all."""
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name / file).open("wb")) for name in names]
        randoms = [np.random.default_rng([number, model]) for model in range(len(names))]
        for opened in files:
            opened.write(header(wanted, "BF16", 2))
        for shape in wanted.values():
            # The scales of the norms lie around one.
            middle, spread = (1.0, 0.1) if len(shape) == 1 else (0.0, 0.02)
            for _, count in chunks(shape):
                values = randoms[0].standard_normal(count, dtype=np.float32)
                stored = bfloat16(values * np.float32(spread) + np.float32(middle))
                files[0].write(stored)
                base = (stored.astype(np.uint32) << 16).view(np.float32)
                for opened, random in zip(files[1:], randoms[1:], strict=True):
                    noise = random.standard_normal(count, dtype=np.float32)
                    noise *= np.float32(0.01 * spread)
                    noise += base
                    opened.write(bfloat16(noise))


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of finite float32 values rounded to bfloat16, to nearest even."""
    bits = values.view(np.uint32)
    odd = (bits >> 16) & 1
    return ((bits + (odd + np.uint32(0x7FFF))) >> 16).astype(np.uint16)


def _write_shell(path: Path, size: Qwen3) -> None:
    """Everything of a sentence-transformers folder but the weights; the tokenizer is a stub."""
    words = {"<|endoftext|>": 0, "<unk>": 1, "a": 2, "b": 3}
    end = {"id": 0, "content": "<|endoftext|>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    weight_map = {name: file for file, tensors in size.shards().items() for name in tensors}
    kind = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{kind}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{kind}.Normalize"},
    ]
    written: dict[str, Any] = {
        "config.json": size.config(),
        "model.safetensors.index.json": {
            "metadata": {"total_size": size.nbytes()},
            "weight_map": weight_map,
        },
        "modules.json": modules,
        "1_Pooling/config.json": {
            "word_embedding_dimension": size.width,
            "pooling_mode_cls_token": False,
            "pooling_mode_lasttoken": True,
        },
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": [end | flags],
            "pre_tokenizer": {"type": "Whitespace"},
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<unk>",
            "model_max_length": 32768,
        },
    }
    for name, content in written.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(content, indent=1) + "\n")
