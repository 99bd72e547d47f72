"""Checkpoints: where weights live, and what surrounds them."""

from .folded import FoldedTensor, LowRank
from .folder import Checkpoint, Component, open_checkpoint
from .locate import NotFoundError, locate
from .names import Matcher, Place, bare, is_derived_buffer, places
from .reference import open_reference
from .safetensors_file import layout, read_header
from .statistics import Statistics, open_statistics
from .tensor import Shape, StoredTensor, Tensor

__all__ = [
    "Checkpoint",
    "Component",
    "FoldedTensor",
    "LowRank",
    "Matcher",
    "NotFoundError",
    "Place",
    "Shape",
    "Statistics",
    "StoredTensor",
    "Tensor",
    "bare",
    "is_derived_buffer",
    "layout",
    "locate",
    "open_checkpoint",
    "open_reference",
    "open_statistics",
    "places",
    "read_header",
]
