"""The difference of two models as a PEFT LoRA adapter: the best of its rank, tensor by tensor."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from ..checkpoint import (
    Checkpoint,
    Matcher,
    Tensor,
    bare,
    is_derived_buffer,
    open_reference,
)
from ..errors import NonFiniteError, PlanError, Problem, UsageError
from .adapter_folder import (
    Entry,
    check_adapter_place,
    entry,
    lora_config,
    module_of,
    savable,
    write_adapter,
)
from .folding import Doubles, widened
from .low_rank import BLOCK_ELEMENTS, Factors, is_tall, ranges, truncated, truncated_tall
from .reader import Reader
from .staging import Staging

EMBEDDING = re.compile(
    r"(^|\.)(\w*_)?(embed|embeddings?|embed_tokens|embed_positions|shared|wte|wpe|"
    r"relative_attention_bias)$"
)
"""Ends of the names of modules that look rows up; every other matrix is a linear layer's."""

TRANSPOSED = {"gpt2", "imagegpt", "openai-gpt"}
"""Values of `model_type` whose linear layers (Conv1D of transformers) store (in, out)."""

Form = Literal["lora", "whole", "left out"]


@dataclass(frozen=True)
class Part:
    """One tensor in which the models differ.

    Attributes:
        name: in the base, with the component's folder.
        form: how the adapter holds it: two factors, the whole tensor, or not at all.
        rank: of the factors; 0 for the other forms.
        energy: squared Frobenius norm of the difference.
        kept: share of the energy that the adapter keeps, 0 to 1.
    """

    name: str
    form: Form
    rank: int
    energy: float
    kept: float


@dataclass(frozen=True)
class Extracted:
    """What an extraction made. `parts` are in the order of the base's tensors."""

    path: Path
    rank: int
    parts: tuple[Part, ...]
    bytes_written: int
    seconds: float
    notes: tuple[str, ...]

    @property
    def kept(self) -> float:
        """Share of the squared Frobenius norm of all differences that the adapter keeps."""
        total = sum(part.energy for part in self.parts)
        return sum(part.energy * part.kept for part in self.parts) / total if total else 1.0


def extract_lora(
    model: str | Path,
    base: str | Path,
    output: str | Path | None = None,
    *,
    rank: int = 32,
    overwrite: bool = False,
) -> Extracted:
    """Write `model - base` as a PEFT adapter of the base's transformer.

    Matrices of linear layers and embeddings become the factors of their truncated singular value
    decomposition in float64, `B = U sqrt(S)` and `A = sqrt(S) V^T` (Eckart and Young: no other
    matrix of this rank is nearer). Biases and what else differs are stored whole. One tensor is in
    memory at a time, besides the adapter, and of a table that is much longer than wide only a
    block of rows and a square of its width.

    Args:
        model: the fine-tuned model: a folder, a Hub id, or either with an adapter.
        base: the model that it was made from, likewise.
        output: the folder to write; `adapters/<name of the model>` by default.
        rank: most singular values that are kept of a tensor.
        overwrite: replace an adapter that is already there, whole and only at the very end.

    Raises:
        NotFoundError, CheckpointError: when a model is not there or broken.
        PlanError: when the models do not fit each other, or there is no matrix to factor.
        NonFiniteError: when a tensor holds not-a-number or infinity.
        OutputExistsError, OutputError: when the output is taken or cannot be written.
    """
    started = time.perf_counter()
    if rank < 1:
        raise UsageError(f"the rank must be at least 1, not {rank}")
    tuned, start = (open_reference(str(name), (Path(),)) for name in (model, base))
    name = Path(str(model)).name or tuned.root.resolve().name
    target = Path(output or Path("adapters") / name).expanduser()
    sources = [(one.label, root) for one in (tuned, start) for root in (one.root, one.adapter)]
    read = [(label, root) for label, root in sources if root is not None]

    def check() -> None:
        check_adapter_place(target, read, "which it is made from", overwrite=overwrite)

    check()
    with Staging(target, check) as staging:
        with Reader() as reader:
            extraction = _Extraction(tuned, start, reader, rank)
            extraction.run()
        write_adapter(staging, extraction.entries, extraction.config())
        staging.commit()
    order = {key: position for position, key in enumerate(extraction.order)}
    parts = tuple(sorted(extraction.parts, key=lambda part: order[part.name]))
    notes = tuple(extraction.notes)
    seconds = time.perf_counter() - started
    return Extracted(target, rank, parts, staging.bytes_written, seconds, notes)


@dataclass(frozen=True)
class _Pair:
    """A tensor of the base and the same of the model; `name` is that of the bare transformer."""

    key: str
    name: str
    mine: Tensor
    theirs: Tensor

    @property
    def module(self) -> str:
        return module_of(self.name)

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def is_matrix(self) -> bool:
        """True for the weight of a linear layer or an embedding."""
        return self.leaf == "weight" and len(self.mine.shape) == 2 and bool(self.module)


@dataclass
class _Extraction:
    """The adapter as it grows."""

    tuned: Checkpoint
    start: Checkpoint
    reader: Reader
    rank: int
    entries: dict[str, Entry] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    saved: list[str] = field(default_factory=list)
    has_biases: bool = False

    @property
    def transposed(self) -> bool:
        """True where linear layers store (in, out)."""
        config = self.start.facts.get("config")
        return config is not None and config.value.get("model_type") in TRANSPOSED

    def run(self) -> None:
        """Factor every matrix that differs, and store the rest."""
        roles = list(self.start.components)
        main = next((role for role in roles if "ransformer" in role), roles[0])
        problems: list[Problem] = []
        paired = {role: list(self._pairs(role, problems)) for role in roles}
        if problems:
            raise PlanError(problems)
        self.order = [pair.key for pairs in paired.values() for pair in pairs]
        rest = []
        for pair in paired.pop(main):
            if pair.is_matrix:
                self._factor(pair)
            else:
                rest.append((pair, self._energy(pair)))
        if not self.ranks:
            told = f"{self.tuned.label} and {self.start.label} have the same matrices"
            raise PlanError([Problem("", f"{told}; there is nothing to factor")])
        self._store_rest([(pair, energy) for pair, energy in rest if energy], main)
        for pair in (pair for pairs in paired.values() for pair in pairs):
            energy = self._energy(pair)
            if energy:
                self._leave(pair, energy)
        self._note_left()

    def config(self) -> dict[str, object]:
        """adapter_config.json."""
        return lora_config(
            self.start.label,
            self.ranks,
            self.saved,
            biases=self.has_biases,
            fan_in_fan_out=self.transposed,
            task="FEATURE_EXTRACTION",
        )

    def _pairs(self, role: str, problems: list[Problem]) -> Iterator[_Pair]:
        component = self.start.components[role]
        mine = self.tuned.components.get(role)
        if mine is None:
            self.notes.append(f"{self.tuned.label} has no {role}; the base's stays as it is")
            return
        matcher = Matcher(mine.tensors)
        used, lacking = set(), []
        for name, theirs in component.tensors.items():
            found, key = matcher.find(name), component.key(name)
            if is_derived_buffer(name):
                continue
            if found is None:
                lacking.append(key)
                continue
            used.add(found)
            pair = _Pair(key, bare(name), mine.tensors[found], theirs)
            wrong = _misfit(pair, self.start)
            if wrong:
                problems.append(Problem(self.tuned.label, wrong))
            else:
                yield pair
        extra = [n for n in mine.tensors if n not in used and not is_derived_buffer(n)]
        self._note_names("lacks", "the base's stay as they are", lacking)
        self._note_names("has", f"{self.start.label} lacks them, and so does the adapter", extra)

    def _note_names(self, verb: str, then: str, names: Sequence[str]) -> None:
        if names:
            more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
            self.notes.append(f"{self.tuned.label} {verb} {', '.join(names[:3])}{more}; {then}")

    def _difference(self, pair: _Pair, start: int, stop: int) -> Doubles:
        """Elements of `model - base` in float64."""
        mine, theirs = (self._values(tensor, start, stop) for tensor in (pair.mine, pair.theirs))
        delta = np.subtract(mine, theirs)
        if not np.isfinite(delta).all():
            labels = [self.tuned.label, self.start.label]
            label = labels[int(bool(np.isfinite(mine).all()))]
            raise NonFiniteError(
                f"{label}: tensor {pair.key} holds not-a-number or infinity. Repair the model"
            )
        return delta

    def _values(self, tensor: Tensor, start: int, stop: int) -> Doubles:
        return widened(self.reader.read(tensor, start, stop), tensor.read_as)

    def _energy(self, pair: _Pair) -> float:
        """The squared norm of the difference, chunk by chunk."""
        count, total = pair.mine.count, 0.0
        for start in range(0, count, BLOCK_ELEMENTS):
            delta = self._difference(pair, start, min(start + BLOCK_ELEMENTS, count))
            total += float(np.sum(delta * delta))
        return total

    def _decomposed(self, pair: _Pair) -> Factors:
        """The truncated singular value decomposition of the difference."""
        rows, columns = pair.mine.shape
        if is_tall(rows, columns):
            return truncated_tall(lambda: self._rows(pair, rows, columns), rows, self.rank)
        if is_tall(columns, rows):
            turned = truncated_tall(lambda: self._columns(pair, rows, columns), columns, self.rank)
            return turned.transposed
        delta = self._difference(pair, 0, rows * columns)
        return truncated(delta.reshape(rows, columns), self.rank)

    def _rows(self, pair: _Pair, rows: int, columns: int) -> Iterable[Doubles]:
        """The difference in blocks of rows."""
        for top, bottom in ranges(rows, columns):
            delta = self._difference(pair, top * columns, bottom * columns)
            yield delta.reshape(bottom - top, columns)

    def _columns(self, pair: _Pair, rows: int, columns: int) -> Iterable[Doubles]:
        """The transposed difference in blocks of rows: columns of a matrix stored by rows."""
        for left, right in ranges(columns, rows):
            starts = range(left, rows * columns, columns)
            yield np.stack([self._difference(pair, at, at + right - left) for at in starts], axis=1)

    def _factor(self, pair: _Pair) -> None:
        if 0 in pair.mine.shape:
            return
        found = self._decomposed(pair)
        if not found.energy:
            return
        name = f"base_model.model.{pair.module}.lora_"
        if EMBEDDING.search(pair.module):
            self.entries[f"{name}embedding_A"] = entry(found.left.T)
            self.entries[f"{name}embedding_B"] = entry(found.right.T)
        else:
            turned = found.transposed if self.transposed else found
            self.entries[f"{name}A.weight"] = entry(turned.right)
            self.entries[f"{name}B.weight"] = entry(turned.left)
        self.ranks[pair.module] = found.rank
        self.parts.append(Part(pair.key, "lora", found.rank, found.energy, found.kept))

    def _store_rest(self, rest: Sequence[tuple[_Pair, float]], main: str) -> None:
        """Biases by themselves, anything else with its module, as PEFT loads them."""
        component = self.start.components[main]
        modules = {module_of(bare(name)) for name in component.tensors} - {""}
        wanted = {pair.module for pair, _ in rest if pair.leaf != "bias"}
        whole = savable(wanted, modules, self.ranks)
        for pair, energy in rest:
            if pair.leaf == "bias" and pair.module and pair.module not in whole:
                wrapped = ".base_layer" if pair.module in self.ranks else ""
                self._store(f"{pair.module}{wrapped}.bias", pair.mine)
                self.has_biases = True
            elif pair.module not in whole:
                self._leave(pair, energy)
                continue
            self.parts.append(Part(pair.key, "whole", 0, energy, 1.0))
        mine = self.tuned.components[main].tensors
        matcher = Matcher(mine)
        for name, theirs in component.tensors.items():
            if module_of(bare(name)) in whole:
                found = matcher.find(name)
                self._store(bare(name), mine[found] if found else theirs)
        self.saved = sorted(whole)

    def _store(self, name: str, tensor: Tensor) -> None:
        raw = self.reader.read(tensor, 0, tensor.count)
        self.entries[f"base_model.model.{name}"] = Entry(tensor.read_as, tensor.shape, raw)

    def _leave(self, pair: _Pair, energy: float) -> None:
        self.parts.append(Part(pair.key, "left out", 0, energy, 0.0))

    def _note_left(self) -> None:
        left = [part.name for part in self.parts if part.form == "left out"]
        if left:
            self.notes.append(
                f"{len(left)} tensors that differ are left out, since PEFT adapts layers of the "
                f"transformer alone: {', '.join(left[:3])}{', ...' if len(left) > 3 else ''}"
            )


def _misfit(pair: _Pair, start: Checkpoint) -> str | None:
    """What keeps two tensors from being subtracted."""
    mine, theirs = pair.mine, pair.theirs
    if mine.shape != theirs.shape:
        shapes = f"{list(mine.shape)}, {list(theirs.shape)} in {start.label}"
        return f"{pair.key} has shape {shapes}. Name the model that it was made from as BASE"
    if not (mine.dtype.is_float and theirs.dtype.is_float):
        return f"{pair.key} is stored as {mine.dtype} and {theirs.dtype}; use unquantised models"
    return None
