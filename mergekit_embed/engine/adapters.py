"""Merging adapters of one base into one adapter: measure, ask the method, put factors together.

    base + sum_k c_k (x_k - base) = base + [c_1 s_1 B_1 ... c_K s_K B_K] [A_1; ...; A_K]

where x_k is the base with `s_k B_k A_k` added. Nothing of the size of a matrix is formed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..checkpoint import LowRank, StoredTensor, Tensor
from ..checkpoint.adapter import SAFETENSORS
from ..checkpoint.adapter_config import CONFIG
from ..errors import NonFiniteError
from ..methods import Gram
from ..methods.notes import collected_notes
from .adapter_folder import entry
from .adapter_plan import CHUNK, AdapterPlan, Target, stored_tensors
from .extract import Part
from .folding import Doubles, widened
from .lineage.file import LINEAGE
from .lineage.of_adapter import lineage_of, origins
from .low_rank import Product, inner_products, truncated_product
from .merge import MergeResult, peak_memory
from .reader import Reader
from .run import Progress, Silent
from .staging import Staging, write_json


@dataclass(frozen=True)
class AdapterResult(MergeResult):
    """What a merge of adapters made.

    Attributes:
        parts: every tensor of the result, as `extract_lora` tells of it; its energy is that of the
            merged difference.
    """

    parts: tuple[Part, ...]

    @property
    def kept(self) -> float:
        """Share of the squared Frobenius norm of all differences that the adapter keeps."""
        total = sum(part.energy for part in self.parts)
        return sum(part.energy * part.kept for part in self.parts) / total if total else 1.0


def merge_adapters(
    plan: AdapterPlan, *, progress: Progress | None = None, started: float | None = None
) -> AdapterResult:
    """Run a plan made by `plan_adapter`, and write the adapter's folder.

    Args:
        plan: what to do.
        progress: told of bytes and tensors as they are done.
        started: when the clock began (perf_counter).

    Raises:
        NonFiniteError: when a member holds, or the result would be, not-a-number or infinity.
        CheckpointError, OutputError: when files cannot be read or written; the output is then as
            it was before.
    """
    started = time.perf_counter() if started is None else started
    plan.check_disk()
    found = origins(plan)
    with Staging(plan.output, plan.check) as staging:
        with Reader() as reader:
            work = _Work(plan, reader, staging, progress or Silent())
            with np.errstate(all="ignore"):  # what is not finite is told by name
                work.run()
        with staging.explained():
            told = lineage_of(work.plan, found, staging.folder)
            write_json(staging.folder / LINEAGE, told)
        staging.commit()
    return AdapterResult(
        path=plan.output,
        members=len(plan.members.adapters),
        seconds=time.perf_counter() - started,
        bytes_read=reader.bytes_read,
        bytes_in=plan.bytes_in,
        bytes_written=staging.bytes_written,
        peak_memory=peak_memory(),
        notes=(*plan.notes, *work.summaries()),
        parts=tuple(work.parts),
    )


@dataclass
class _Work:
    """The adapter as it grows."""

    plan: AdapterPlan
    reader: Reader
    staging: Staging
    progress: Progress
    parts: list[Part] = field(default_factory=list)
    said: dict[str, list[str]] = field(default_factory=dict)
    file: int = 0

    def run(self) -> None:
        """Write every tensor and the configuration."""
        self.drop_copies()
        header, _, size = self.plan.layout
        with self.staging.explained():
            self.file = self.staging.create(SAFETENSORS, header, size)
            write_json(self.staging.folder / CONFIG, self.plan.config)
        self.progress.start(self.plan.bytes_in, len(self.plan.targets))
        grams = self._group_grams()
        for target in self.plan.targets:
            gram = grams.get(target.group) if target.unit != "tensor" else None
            coefficients = self._coefficients(target, gram)
            if target.rank:
                self._write_factors(target, coefficients)
            if target.whole:
                self._write_whole(target, target.whole, coefficients)
            self.progress.advance(target.bytes_in)
            self.progress.finish_tensor(target.key)

    def drop_copies(self) -> None:
        """Leave out whole tensors that are the base's own, which PEFT saves beside factors."""
        kept = [
            target.without_whole() if target.may_be_copy and self._is_copy(target) else target
            for target in self.plan.targets
        ]
        stored = dict(stored_tensors(kept, self.plan.dtype))
        self.plan = replace(self.plan, targets=tuple(kept), stored=stored)

    def _is_copy(self, target: Target) -> bool:
        found = target.touched
        for start, stop in _chunks(target):
            base = self._values(target, found.base, None, start, stop)
            for member, whole in enumerate(found.wholes):
                if whole is not None:
                    values = self._values(target, whole, member, start, stop)
                    if not np.array_equal(values, base):
                        return False
        return True

    def summaries(self) -> Iterator[str]:
        """What the method had to say, with the tensors that each note is about."""
        for message, names in sorted(self.said.items()):
            more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
            yield f"{', '.join(names[:3])}{more}: {message}"

    # --- coefficients

    def _group_grams(self) -> dict[str, Gram]:
        """Gram matrices of the layers or of the model; what no adapter touches adds nothing."""
        sums: dict[str, Gram] = {}
        for target in self.plan.targets:
            if target.unit == "tensor" or not self.plan.recipe.method.geometry:
                continue
            found = self._gram(target)
            group = target.group
            sums[group] = sums[group] + found if group in sums else found
        return sums

    def _coefficients(self, target: Target, gram: Gram | None) -> Doubles:
        """The method's coefficients: float64 (K,)."""
        method, count = self.plan.recipe.method, len(self.plan.members.adapters)
        if gram is None:
            gram = self._gram(target) if method.geometry else Gram(np.eye(count))
        with collected_notes() as said:
            found = method.function(gram, **method.arguments(target.parameters, count))
        for message in dict.fromkeys(said):
            self.said.setdefault(message, []).append(target.key)
        return np.asarray(found, dtype=np.float64)

    def _gram(self, target: Target) -> Gram:
        """Inner products of what the members learned, through the factors where these are all."""
        if not any(target.touched.wholes):
            return Gram(inner_products(self._products(target)))
        count = len(self.plan.members.adapters)
        products = np.zeros((count, count))
        sources = target.sources()
        for start, stop in _chunks(target):
            base = self._values(target, target.touched.base, None, start, stop)
            deltas = np.stack(
                [
                    self._values(target, source, member, start, stop) - base
                    for member, source in enumerate(sources)
                ]
            )
            products += deltas @ deltas.T
        return Gram(products)

    # --- factors

    def _products(self, target: Target) -> list[Product | None]:
        """The members' updates, with their factors `s` on B."""
        found: list[Product | None] = []
        for member, update in enumerate(target.touched.updates):
            if update is None:
                found.append(None)
                continue
            stored_a, stored_b = _sides(update)
            a = self._matrix(target, stored_a, member)
            found.append(Product(update.scale * self._matrix(target, stored_b, member), a))
        return found

    def _write_factors(self, target: Target, coefficients: Doubles) -> None:
        """Put the factors side by side, `c s B` and A as it is, and cut them off if need be."""
        left, right = [], []
        for member, update in enumerate(target.touched.updates):
            if update is None:
                continue
            stored_a, stored_b = _sides(update)
            factor = coefficients[member] * update.scale
            left.append(factor * self._matrix(target, stored_b, member))
            right.append(self._matrix(target, stored_a, member))
        product = Product(np.concatenate(left, axis=1), np.concatenate(right))
        kept = 1.0
        if target.truncated:
            self._refuse_non_finite(target, product.b)
            found = truncated_product(product, target.rank)
            product, energy, kept = Product(found.left, found.right), found.energy, found.kept
        else:
            energy = float(inner_products([product])[0, 0])
        assert target.a is not None and target.b is not None
        self._put(target, target.a, product.a)
        self._put(target, target.b, product.b)
        self.parts.append(Part(target.key, "lora", target.rank, energy, kept))

    def _matrix(self, target: Target, tensor: StoredTensor, member: int) -> Doubles:
        return self._values(target, tensor, member, 0, tensor.count).reshape(tensor.shape)

    # --- whole tensors

    def _write_whole(self, target: Target, name: str, coefficients: Doubles) -> None:
        """Merge what members have in place of the base's tensor, chunk by chunk."""
        found, energy = target.touched, 0.0
        for start, stop in _chunks(target):
            base = self._values(target, found.base, None, start, stop)
            merged = base.copy()
            for member, (whole, share) in enumerate(zip(found.wholes, coefficients, strict=True)):
                if whole is not None:
                    merged += share * (self._values(target, whole, member, start, stop) - base)
            energy += float(np.sum((merged - base) ** 2))
            self._put(target, name, merged, start)
        self.parts.append(Part(found.key, "whole", 0, energy, 1.0))

    # --- reading and writing

    def _values(
        self, target: Target, tensor: Tensor, member: int | None, start: int, stop: int
    ) -> Doubles:
        """Elements in float64. `member` is whose they are; None for the base.

        Raises:
            NonFiniteError: naming the model.
        """
        values = widened(self.reader.read(tensor, start, stop), tensor.read_as)
        if not np.isfinite(values).all():
            members = self.plan.members
            label = members.base.label if member is None else members.labels[member]
            raise NonFiniteError(
                f"{label}: tensor {target.key} holds not-a-number or infinity. Repair the model"
            )
        return values

    def _put(self, target: Target, name: str, values: Doubles, start: int = 0) -> None:
        dtype = self.plan.dtype
        stored = entry(values, dtype)
        self._refuse_non_finite(target, widened(stored.raw, dtype))
        offset = self.plan.layout[1][name] + start * dtype.itemsize
        self.staging.put(self.file, offset, stored.raw)

    def _refuse_non_finite(self, target: Target, values: Doubles) -> None:
        if not np.isfinite(values).all():
            raise NonFiniteError(
                f"tensor {target.key}: the merge overflows {self.plan.dtype}. Choose a wider "
                "`out_dtype`"
            )


def _sides(update: LowRank) -> Sequence[StoredTensor]:
    """A and B as PEFT stores them: (rank, in) and (out, rank)."""
    return (update.left, update.right) if update.transposed else (update.right, update.left)


def _chunks(target: Target) -> Iterator[tuple[int, int]]:
    count = target.touched.base.count
    for start in range(0, count, CHUNK):
        yield start, min(start + CHUNK, count)
