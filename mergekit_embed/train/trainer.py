"""sentence-transformers' trainer with our order of batches, and checkpoints that hold no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback

from .batches import Order, Rows
from .card import Card
from .models import put_weights, weights_of

WEIGHTS = "weights.safetensors"
"""What training has changed, in a checkpoint."""


class MemberTrainer(SentenceTransformerTrainer):
    """Trains one member. `tokens` counts what this process has put through the model."""

    def __init__(
        self,
        *,
        rows: Rows,
        order: Order,
        columns: Callable[[Sequence[Any]], Mapping[str, Any]],
        **options: Any,
    ):
        """`rows`, `order` and `columns`: the batches; `options`: those of the trainer."""
        self._rows, self._order, self._columns = rows, order, columns
        self.tokens: Tensor | int = 0
        super().__init__(**options)
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Our batches, a piece of each for every process."""
        self.accelerator.even_batches = False
        loader: DataLoader[Any] = DataLoader(
            self._rows,
            batch_sampler=self._order,
            collate_fn=self._columns,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Count the tokens too, without waiting for the device."""
        masks = [value for key, value in inputs.items() if key.endswith("_attention_mask")]
        self.tokens = self.tokens + torch.stack([mask.sum() for mask in masks]).sum()
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Our card, which gathers nothing by itself."""
        self.add_callback(Card(default_args_dict))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.model, folder / WEIGHTS)

    def _load_from_checkpoint(self, *checkpoint: Any, **options: Any) -> None:
        put_weights(self.model, load_file(Path(checkpoint[0]) / WEIGHTS))


def save_weights(model: SentenceTransformer, path: Path) -> None:
    """Write what training has changed of a model."""
    save_file({name: one.contiguous() for name, one in weights_of(model).items()}, path)
