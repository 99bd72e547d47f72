"""Model folders made of nothing but tensors: for numerics, where no model needs to run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from reference import Array, float64_from_storage, round_to, storage_from_float64
from safetensors import deserialize
from safetensors.torch import save_file

Tensors = dict[str, Array]

SHAPES: dict[str, tuple[int, ...]] = {
    "embeddings.word_embeddings.weight": (1200, 96),  # more than one block of the long sums
    "embeddings.LayerNorm.weight": (96,),
    "encoder.layer.0.attention.self.query.weight": (96, 96),
    "encoder.layer.0.attention.self.query.bias": (96,),
    "encoder.layer.1.intermediate.dense.weight": (7, 96),
    "encoder.layer.1.row": (1, 33),
    "encoder.layer.2.cube": (3, 5, 7),
    "encoder.layer.2.scale": (),
    "pooler.empty": (0, 4),
}


def random_model(seed: int, around: Tensors | None = None, scale: float = 0.02) -> Tensors:
    """Normal tensors of `SHAPES`; `around` a given model they are small changes of it."""
    generator = np.random.default_rng(seed)
    found = {}
    for name, shape in SHAPES.items():
        noise = generator.standard_normal(shape) * scale
        found[name] = noise if around is None else around[name] + 0.1 * noise
    return found


def stored(model: Tensors, dtype: str) -> Tensors:
    """The model as it is after having been stored as `dtype`."""
    return {name: round_to(np.asarray(array), dtype) for name, array in model.items()}


def write_folder(
    path: Path, model: Tensors, dtype: str | Mapping[str, str], shards: int = 1
) -> Path:
    """A model folder that holds the tensors, in one file or in several with an index."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    names = list(model)
    files = ["model.safetensors"]
    if shards > 1:
        files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        weight_map = {name: files[i % shards] for i, name in enumerate(names)}
        index = {"metadata": {}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    for position, file in enumerate(files):
        content = {
            name: _tensor(model[name], dtype if isinstance(dtype, str) else dtype[name])
            for name in names[position::shards]
        }
        save_file(content, path / file, metadata={"format": "pt"})
    return path


def write_statistics(
    path: Path,
    kind: str,
    tensors: Mapping[str, Array],
    transposed: Sequence[str] = (),
    dtype: str = "F32",
) -> Path:
    """A folder of statistics as `boom stats` writes it: `kind` is "fisher" or "gram"."""
    path.mkdir(parents=True)
    content = {name: _tensor(array, dtype) for name, array in tensors.items()}
    save_file(content, path / f"{kind}.safetensors")
    told = {"norm": norm_of(tensors)} if kind == "fisher" else {"transposed": list(transposed)}
    (path / "statistics.json").write_text(json.dumps({kind: told}))
    return path


def norm_of(fishers: Mapping[str, Array]) -> float:
    """L2 norm over all tensors; 1 where all are zero."""
    return float(np.sqrt(sum(float((array**2).sum()) for array in fishers.values()))) or 1.0


def _tensor(array: Array, dtype: str) -> torch.Tensor:
    kinds = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
    }
    raw = bytearray(storage_from_float64(np.asarray(array), dtype))
    if not raw:
        return torch.empty(np.shape(array), dtype=kinds[dtype])
    return torch.frombuffer(raw, dtype=kinds[dtype]).reshape(np.shape(array))


def read_folder(path: Path) -> Tensors:
    """All float tensors of a folder written by the package, through the official library."""
    found: Tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        for name, entry in deserialize(file.read_bytes()):
            found[name] = float64_from_storage(bytes(entry["data"]), entry["dtype"], entry["shape"])
    return found


def raw_bytes(path: Path) -> dict[str, bytes]:
    """The stored bytes of every tensor of a folder."""
    return {
        name: bytes(entry["data"])
        for file in sorted(path.glob("*.safetensors"))
        for name, entry in deserialize(file.read_bytes())
    }


def largest(models: Sequence[Tensors], name: str) -> Array:
    """The largest magnitude of each element among the models."""
    return np.max([np.abs(model[name]) for model in models], axis=0)
