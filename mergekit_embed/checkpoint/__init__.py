"""Checkpoints: where weights live, and what surrounds them."""

from .folded import FoldedTensor, LowRank
from .folder import Checkpoint, Component, open_checkpoint
from .locate import NotFoundError, locate
from .names import Matcher, Place, bare, is_derived_buffer, places
from .reference import open_reference
from .remapped import Fallback, RemappedTensor
from .safetensors_file import layout, read_header
from .statistics import Statistics, open_statistics
from .tensor import Shape, StoredTensor, Tensor
from .vocabulary import Tables, Vocabulary, find_tables, has_tokenizer, read_vocabulary

__all__ = [
    "Checkpoint",
    "Component",
    "Fallback",
    "FoldedTensor",
    "LowRank",
    "Matcher",
    "NotFoundError",
    "Place",
    "RemappedTensor",
    "Shape",
    "Statistics",
    "StoredTensor",
    "Tables",
    "Tensor",
    "Vocabulary",
    "bare",
    "find_tables",
    "has_tokenizer",
    "is_derived_buffer",
    "layout",
    "locate",
    "open_checkpoint",
    "open_reference",
    "open_statistics",
    "places",
    "read_header",
    "read_vocabulary",
]
