"""Checkpoints: where weights live, and what surrounds them."""

from .folder import Checkpoint, Component, open_checkpoint
from .locate import NotFoundError, locate
from .names import Matcher, Place, bare, is_derived_buffer, places
from .safetensors_file import layout, read_header
from .tensor import Shape, StoredTensor

__all__ = [
    "Checkpoint",
    "Component",
    "Matcher",
    "NotFoundError",
    "Place",
    "Shape",
    "StoredTensor",
    "bare",
    "is_derived_buffer",
    "layout",
    "locate",
    "open_checkpoint",
    "places",
    "read_header",
]
