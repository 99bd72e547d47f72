"""A model that runs, and the names that its folder gives to its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint, Matcher, open_reference
from ..errors import CheckpointError, UsageError
from ..rows import Role

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

PROMPTS: Mapping[Role, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
    "text": (),
}
"""The prompts that sentence-transformers looks for, in this order, when it embeds such a text."""

Features = dict[str, Any]
"""Tokenised texts, as sentence-transformers hands them around."""


class Embedder:
    """A model loaded in float32, without dropout.

    Attributes:
        checkpoint: the model's folder, by its headers.
        keys: the folder's name of every parameter that is stored there, by the parameter's name in
            the loaded model.
        unknown: parameters that the folder does not hold in this shape.
    """

    def __init__(self, reference: str, device: str, max_length: int | None):
        """Load a model.

        Raises:
            NotFoundError, CheckpointError: when it is not there, broken, or cannot be loaded.
            UsageError: when sentence-transformers is missing, or the model has an adapter.
        """
        self.checkpoint = open_reference(reference, (Path(),))
        if self.checkpoint.adapter is not None:
            raise UsageError(
                f"{reference}: statistics are measured on a whole model; merge the adapter into it "
                "first (`merge_method: passthrough`), and measure what that gives"
            )
        self.model = _load(self.checkpoint, device)
        longest = self.model.max_seq_length
        if max_length is not None:
            self.model.max_seq_length = min(max_length, longest or max_length)
        self.keys, self.unknown = stored_names(
            self.model, self.checkpoint, lambda module: module.named_parameters()
        )

    def features(self, role: Role, texts: Sequence[str]) -> Features:
        """Texts as the model takes them, with the prompt that it has for them."""
        from sentence_transformers.util import batch_to_device

        tokens = self.model.preprocess(list(texts), prompt=self.prompt(role))
        return batch_to_device(tokens, self.model.device)

    def prompt(self, role: Role) -> str | None:
        """The prompt before a text of this role: its own, else the model's default one."""
        names = (*PROMPTS[role], self.model.default_prompt_name)
        found = (self.model.prompts.get(name) for name in names if name is not None)
        return next((prompt for prompt in found if prompt is not None), None)

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Every parameter that the folder holds, once, by the folder's name."""
        for name, parameter in self.model.named_parameters():
            if name in self.keys:
                yield self.keys[name], parameter


def _load(checkpoint: Checkpoint, device: str) -> SentenceTransformer:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UsageError(
            "measuring a model needs sentence-transformers: pip install 'mergekit_embed[train]'"
        ) from error
    from ..kernels.torch_backend import choose_device

    chosen = choose_device(device)
    try:
        with quietly():
            model = SentenceTransformer(
                str(checkpoint.root),
                device=str(chosen),
                local_files_only=True,
                model_kwargs={"dtype": "float32"},
            )
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            checkpoint.root, f"cannot be loaded by sentence-transformers: {reason}"
        ) from error
    return model.eval()


@contextmanager
def quietly() -> Iterator[None]:
    """Without the progress bar of loading weights, which would stand beside ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    hide: Callable[[], None] = logging.disable_progress_bar
    show: Callable[[], None] = logging.enable_progress_bar
    hide()
    try:
        yield
    finally:
        if shown:
            show()


def stored_names(
    model: SentenceTransformer,
    checkpoint: Checkpoint,
    tensors_of: Callable[[torch.nn.Module], Iterable[tuple[str, torch.Tensor]]],
) -> tuple[dict[str, str], list[str]]:
    """What the folder calls the tensors of a loaded model, by their names in the model.

    Args:
        model: loaded from the checkpoint's folder.
        checkpoint: of the folder.
        tensors_of: what of a module is meant, with its name there.

    Returns:
        the names, and the tensors that the folder does not hold in this shape.

    Raises:
        CheckpointError: when it holds none of them.
    """
    components = {component.path: component for component in checkpoint.components.values()}
    folders = [module.path for module in checkpoint.modules] or [""]
    keys: dict[str, str] = {}
    unknown: list[str] = []
    for position, (number, module) in enumerate(model.named_children()):
        component = components.get(folders[position]) if position < len(folders) else None
        matcher = Matcher(component.tensors if component else ())
        for name, tensor in tensors_of(module):
            found = matcher.find(name)
            fits = component and found and component.tensors[found].shape == tensor.shape
            if component and found and fits:
                keys[f"{number}.{name}"] = component.key(found)
            else:
                unknown.append(f"{number}.{name}")
    if not keys:
        raise CheckpointError(
            checkpoint.root, "is loaded with parameters under names that its files do not have"
        )
    return keys, unknown
