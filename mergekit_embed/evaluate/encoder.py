"""A SentenceTransformer as mteb asks for embeddings: prompts, dimensions, and word of progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
from mteb.types import PromptType
from numpy.typing import NDArray

from ..engine.hashing import digest_of
from ..kernels.torch_backend import choose_device

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Prompts = Mapping[str, str]
"""By `query`, `document`, a task's name, or a type of task; or `NAME-query`, `NAME-document`."""

TaskPrompt = str | Mapping[Literal["query", "document"], str]
"""What a local task puts before its texts."""


@dataclass(frozen=True)
class Settings:
    """How models are run, all that changes what they give.

    Attributes:
        dtype: of the weights, and of the arithmetic.
        prompts: that come before a model's own.
        max_length: tokens of a text, those after it are cut off; None for the model's own limit.
    """

    dtype: str = "float32"
    prompts: Prompts = field(default_factory=dict)
    max_length: int | None = None

    def experiment(self, dimension: int | None) -> dict[str, Any]:
        """What of this is not as by default; results are kept apart by it."""
        found: dict[str, Any] = {}
        if dimension is not None:
            found["dimension"] = dimension
        if self.dtype != "float32":
            found["dtype"] = self.dtype
        if self.max_length is not None:
            found["max_length"] = self.max_length
        if self.prompts:
            said = repr(sorted(self.prompts.items()))
            found["prompts"] = digest_of(said.encode())[:16]
        return found


def chosen_dtype(wanted: str, device: str) -> str:
    """The type of weights that "auto" stands for: bfloat16 on a CUDA device, else float32."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if choose_device(device).type == "cuda" else "float32"


class Encoder(AbsEncoder):
    """Embeds texts for mteb.

    Attributes:
        dimension: how many dimensions are kept, from the first; None for all.
        keeps: remember the embeddings of a task, for the next `dimension`.
    """

    mteb_model_meta: ModelMeta

    def __init__(
        self,
        model: SentenceTransformer,
        meta: ModelMeta,
        settings: Settings,
        task_prompts: Mapping[str, TaskPrompt],
        advance: Callable[[int], None],
    ):
        """`task_prompts` are those of local tasks; `advance` is told of texts as they are done."""
        self.model = model
        self.mteb_model_meta = meta
        self.dimension: int | None = None
        self.keeps = False
        self._settings, self._task_prompts = settings, task_prompts
        self._kept: dict[str, NDArray[np.float32]] = {}

        def count(module: Any, arguments: Any, output: Mapping[str, Any]) -> None:
            advance(len(output["sentence_embedding"]))

        self._hook = model.register_forward_hook(count)

    def forget(self) -> None:
        """Let go of the embeddings that are kept."""
        self._kept.clear()

    def close(self) -> None:
        """Count no longer what the model embeds."""
        self._hook.remove()

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **options: Any,
    ) -> NDArray[np.float32]:
        """The embeddings (texts, dimensions) of a DataLoader's texts. See mteb's Encoder.

        sentence-transformers sorts the texts by length, so that a batch has little padding.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        prompt = self._prompt(task_metadata, prompt_type)
        key = digest_of(repr((prompt, prompt_type, texts)).encode()) if self.keeps else ""
        found = self._kept.get(key)
        if found is None:
            found = self._embedded(texts, prompt, prompt_type, options)
            if self.keeps:
                self._kept[key] = found
        return found if self.dimension is None else found[:, : self.dimension]

    def _embedded(
        self, texts: list[str], prompt: str | None, kind: PromptType | None, options: Any
    ) -> NDArray[np.float32]:
        encode: Callable[..., Any] = self.model.encode
        if kind == PromptType.query:
            encode = self.model.encode_query
        elif kind == PromptType.document:
            encode = self.model.encode_document
        options = {**options, "show_progress_bar": False, "convert_to_numpy": True}
        return np.asarray(encode(texts, prompt=prompt, **options), dtype=np.float32)

    def _prompt(self, task: Any, kind: PromptType | None) -> str | None:
        """What is put before texts: as asked for, else the task's, else the model's for such.

        None leaves the choice to sentence-transformers, which takes the default prompt.
        """
        asked = get_prompt_name(dict(self._settings.prompts), task, kind)
        if asked is not None:
            return self._settings.prompts[asked]
        own = self._task_prompts.get(task.name)
        if isinstance(own, str):
            return own
        if own is not None and kind is not None and kind.value in own:
            return own[kind.value]
        prompts = {name: text for name, text in (self.model.prompts or {}).items() if text}
        named = get_prompt_name(prompts, task, kind)
        return None if named is None else prompts[named]
