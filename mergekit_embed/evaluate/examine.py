"""The health of embeddings: what `health` measures, of models on the same texts, and what is wrong.

No labels are needed. A merge is held against its parents, where these are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..errors import UsageError
from ..task_folder import Judged, Paired, TaskFolder, every_text
from . import health
from .models import Model

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MOST_TEXTS = 512
"""Texts that health is measured on; singular values of more take long and say the same."""

MOST_PAIRS = 128
"""Pairs that alignment is measured on."""

BATCH = 32

LOST_RANK = 0.5
"""A merge has collapsed when its effective rank is below this part of the lowest parent's."""

LOST_DEPTH = 0.7
"""The same for the sum over depth."""

NARROWED = 0.2
"""A merge has collapsed when its mean cosine is above every parent's by so much."""

NARROW = 0.9
"""Without parents: the mean cosine from which on texts can hardly be told apart."""

FLAT = 0.02
"""Without parents: an effective rank below this part of what it could be."""

IDLE = 0.1
"""The part of dimensions that may be dead or duplicates."""

LENGTHENED = 0.15
"""How much more alike long texts may be than short ones, beyond what they are in the parents."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """What health is measured on: texts, each once, and pairs that belong together."""

    texts: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Drift:
    """How far a model is from a parent: linear CKA of embeddings, and of every layer in order."""

    parent: str
    cka: float
    layers: tuple[float, ...]
    rank_sum: float


@dataclass(frozen=True)
class Health:
    """What was measured of a model; see the functions of `health` for what each number is.

    Attributes:
        ranks: the effective rank of every layer, in order; `rank_sum` adds them up.
        length_buckets: from the shortest texts to the longest.
        alignment: None without pairs.
        warnings: what is wrong, in sentences.
    """

    model: str
    dimensions: int
    effective_rank: float
    rank_sum: float
    ranks: tuple[float, ...]
    isotropy: float
    mean_cosine: float
    uniformity: float
    alignment: float | None
    length_buckets: tuple[float, ...]
    dead: int
    duplicated: int
    drift: tuple[Drift, ...] = ()
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def sample_of(folders: Sequence[TaskFolder], file: Path | None = None) -> Sample:
    """Texts of local tasks, or of a file with one a line; which are taken depends on them alone.

    Raises:
        UsageError: when there are fewer than eight.
    """
    texts = {text for folder in folders for text in every_text(folder.content)}
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UsageError(f"{file}: cannot be read: {error}") from error
        texts = {line for line in lines if line.strip()}
    chosen = sorted(texts, key=_draw)[:MOST_TEXTS]
    if len(chosen) < 2 * health.BUCKETS:
        raise UsageError(
            "health is measured on texts: name a local task in --tasks, or a file with a text a "
            f"line in --health-texts (here are {len(chosen)})"
        )
    pairs = {pair for folder in folders for pair in _pairs(folder)}
    return Sample(tuple(chosen), tuple(sorted(pairs, key=lambda pair: _draw(pair[0]))[:MOST_PAIRS]))


def _draw(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def _pairs(folder: TaskFolder) -> Iterator[tuple[str, str]]:
    """Texts of a task that belong together."""
    content = folder.content
    if isinstance(content, Judged):
        for query, scores in content.relevant.items():
            for document, score in scores.items():
                if score > 0:
                    yield content.queries[query], content.documents[document]
    elif isinstance(content, Paired) and not content.scores:
        labels = content.labels or (1,) * len(content.left)
        for left, right, label in zip(content.left, content.right, labels, strict=True):
            if label:
                yield left, right


@dataclass(frozen=True)
class _Seen:
    """What a model gives for the texts of a sample."""

    vectors: Vectors
    layers: tuple[Vectors, ...]
    health: Health


class Examination:
    """Health of models on one sample. What is seen of a model is kept: it may be a parent too."""

    def __init__(self, sample: Sample, device: str = "auto", dtype: str = "float32"):
        """`device` and `dtype` as `Model.open` takes them."""
        self._sample, self._device, self._dtype = sample, device, dtype
        self._seen: dict[str, _Seen] = {}

    def examine(self, model: Model, parents: Sequence[Model] = ()) -> Health:
        """The health of a model, held against its parents; a model is no parent of itself.

        Raises:
            CheckpointError, PlanError, NonFiniteError: when one of them is broken.
        """
        own = self._look(model)
        others = [self._look(parent) for parent in parents if parent.reference != model.reference]
        drift = tuple(_drift(own, other) for other in others)
        warnings = verdict(own.health, [other.health for other in others])
        found = {**vars(own.health), "drift": drift, "warnings": tuple(warnings)}
        return Health(**found)

    def _look(self, model: Model) -> _Seen:
        if model.reference not in self._seen:
            self.look(model, model.open(self._device, self._dtype))
        return self._seen[model.reference]

    def look(self, model: Model, opened: SentenceTransformer) -> None:
        """See a model that is open already, so that it need not be opened again."""
        if model.reference not in self._seen:
            vectors = embedded(opened, self._sample.texts)
            layers = tuple(layers_of(opened, self._sample.texts))
            pairs = None
            if self._sample.pairs:
                left, right = zip(*self._sample.pairs, strict=True)
                pairs = embedded(opened, left), embedded(opened, right)
            measured = _measured(model.name, self._sample.texts, vectors, layers, pairs)
            self._seen[model.reference] = _Seen(vectors, layers, measured)


def embedded(model: SentenceTransformer, texts: Sequence[str]) -> Vectors:
    """Embeddings (texts, dimensions), float32."""
    found = model.encode(list(texts), batch_size=BATCH, show_progress_bar=False)
    return np.asarray(found, dtype=np.float32)


def layers_of(model: SentenceTransformer, texts: Sequence[str]) -> Iterator[Vectors]:
    """What every layer of the transformer gives, its tokens' mean (texts, width), from the first.

    None for a model that has no transformer of the `transformers` library.
    """
    import torch
    from sentence_transformers.util import batch_to_device

    inner = getattr(model[0], "auto_model", None)
    if not isinstance(inner, torch.nn.Module):
        return
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    parts: list[list[Any]] = []
    for start in range(0, len(order), BATCH):
        batch = [texts[i] for i in order[start : start + BATCH]]
        features = batch_to_device(model.preprocess(batch), model.device)
        names = ("input_ids", "attention_mask", "token_type_ids")
        given = {name: features[name] for name in names if name in features}
        with torch.no_grad():
            states = inner(**given, output_hidden_states=True).hidden_states
        mask = given["attention_mask"][..., None].to(states[0].dtype)
        means = [((state * mask).sum(1) / mask.sum(1)).float().cpu().numpy() for state in states]
        parts.append(means)
    back = np.argsort(order)
    for layer in zip(*parts, strict=True):
        yield np.concatenate(layer)[back]


def _measured(
    name: str,
    texts: Sequence[str],
    vectors: Vectors,
    layers: Sequence[Vectors],
    pairs: tuple[Vectors, Vectors] | None,
) -> Health:
    ranks = tuple(health.effective_rank(layer) for layer in layers)
    return Health(
        model=name,
        dimensions=vectors.shape[1],
        effective_rank=health.effective_rank(vectors),
        rank_sum=float(sum(ranks)),
        ranks=ranks,
        isotropy=health.isotropy(vectors),
        mean_cosine=health.mean_cosine(vectors),
        uniformity=health.uniformity(vectors),
        alignment=None if pairs is None else health.alignment(*pairs),
        length_buckets=health.length_buckets(vectors, [len(text) for text in texts]),
        dead=health.dead_dimensions(vectors),
        duplicated=health.duplicated_dimensions(vectors),
    )


def _drift(own: _Seen, parent: _Seen) -> Drift:
    layers: tuple[float, ...] = ()
    if len(own.layers) == len(parent.layers):
        layers = tuple(
            health.cka(one, other) for one, other in zip(own.layers, parent.layers, strict=True)
        )
    return Drift(
        parent=parent.health.model,
        cka=health.cka(own.vectors, parent.vectors),
        layers=layers,
        rank_sum=own.health.rank_sum - parent.health.rank_sum,
    )


def verdict(own: Health, parents: Sequence[Health]) -> list[str]:
    """What is wrong with a model, in sentences; nothing where all is well."""
    found = [*_against(own, parents)] if parents else [*_alone(own)]
    idle = own.dead + own.duplicated
    usual = max((parent.dead + parent.duplicated for parent in parents), default=0)
    if idle > max(IDLE * own.dimensions, usual):
        found.append(
            f"{own.dead} of {own.dimensions} dimensions are dead and {own.duplicated} duplicated"
        )
    longer = _lengthening(own) - max((_lengthening(parent) for parent in parents), default=0.0)
    if longer > LENGTHENED:
        found.append(
            f"long texts are more alike than short ones by {_lengthening(own):.2f} in mean cosine: "
            "length collapse"
        )
    return found


def _against(own: Health, parents: Sequence[Health]) -> Iterator[str]:
    rank = min(parent.effective_rank for parent in parents)
    if own.effective_rank < LOST_RANK * rank:
        yield f"collapsed: an effective rank of {own.effective_rank:.1f}, the parents' {rank:.1f}"
    depth = min(parent.rank_sum for parent in parents)
    if own.rank_sum < LOST_DEPTH * depth:
        yield f"its layers lost directions: ranks of {own.rank_sum:.0f} in all, not {depth:.0f}"
    cosine = max(parent.mean_cosine for parent in parents)
    if own.mean_cosine > cosine + NARROWED:
        told = f"collapsed: texts have a mean cosine of {own.mean_cosine:.2f}"
        yield f"{told}, the parents' {cosine:.2f}"


def _alone(own: Health) -> Iterator[str]:
    if own.mean_cosine > NARROW:
        yield f"collapsed: texts have a mean cosine of {own.mean_cosine:.2f}"
    if own.effective_rank < FLAT * min(own.dimensions, MOST_TEXTS):
        yield f"collapsed: an effective rank of {own.effective_rank:.1f} of {own.dimensions}"


def _lengthening(own: Health) -> float:
    return own.length_buckets[-1] - own.length_buckets[0] if own.length_buckets else 0.0


def table(found: Sequence[Health]) -> tuple[list[str], list[list[str]]]:
    """Names of columns, and a line a model."""
    header = ["model", "effective rank", "isotropy", "mean cosine", "uniformity", "alignment"]
    header += ["short to long", "dead", "duplicated", "rank sum", "CKA with parents"]
    lines = []
    for one in found:
        buckets = " ".join(f"{value:.2f}" for value in one.length_buckets)
        drift = ", ".join(f"{drift.parent} {drift.cka:.3f}" for drift in one.drift)
        lines.append(
            [
                one.model,
                f"{one.effective_rank:.1f}",
                f"{one.isotropy:.3f}",
                f"{one.mean_cosine:.3f}",
                f"{one.uniformity:.2f}",
                "-" if one.alignment is None else f"{one.alignment:.3f}",
                buckets,
                str(one.dead),
                str(one.duplicated),
                f"{one.rank_sum:.0f}",
                drift or "-",
            ]
        )
    return header, lines
