"""The model card of a merged model: README.md, from its lineage.

What the card says of the merge stands between markers, which Markdown does not show. Writing it
again changes what is between them and the metadata that is ours, and leaves what people wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.adapter_config import CONFIG
from ..checkpoint.shell import read_modules
from ..checkpoint.weights import is_file, read_bytes, read_object
from ..disk import write_whole
from ..engine.lineage.cards import CARD, METADATA
from ..engine.staging import explained
from ..errors import CheckpointError
from . import card_text
from .card_data import Licence, licence_of, licences, metadata
from .lineage import Lineage, read_lineage
from .lineage_tree import tree_of

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

SECTIONS = ("about", "usage", "mixture", "evaluation", "recipe", "lineage")
"""What stands between markers, in the order of a new card."""

MAX_BYTES = 2**24

OURS = ("library_name", "pipeline_tag", "base_model", "base_model_relation")
"""Metadata that is written anew; of the rest what people wrote stays."""


def write_card(
    folder: str | Path, results: Sequence[EvalResult] = (), *, name: str | None = None
) -> Path:
    """Write the card of the merged model in a folder, or bring the one that is there up to date.

    Args:
        folder: the model's, with its lineage.
        results: what it reaches on benchmarks; none: those in the card stay.
        name: what users load it by, such as its Hub id; the name of the folder by default.

    Returns:
        the file.

    Raises:
        CheckpointError: when there is no lineage, or the card that is there cannot be read.
        OutputError: when it cannot be written.
    """
    root = Path(folder).expanduser()
    lineage = read_lineage(root)
    library = _library(root)
    licence = licence_of(licences(lineage))
    there = _text(root)
    data, body = _parts(root / CARD, there) if there is not None else ({}, "")
    if licence.name is None and data.get("license"):
        licence = Licence(str(data["license"]))  # somebody has decided
    called = name or root.resolve().name
    texts = {
        "about": card_text.opening(lineage, _dimension(root)),
        "usage": card_text.usage(called, library, _base_of(root)),
        "mixture": card_text.mixture(lineage),
        "recipe": card_text.recipe(lineage),
        "lineage": card_text.history(lineage, tree_of(root), licence),
    }
    if results or not _has(body, "evaluation"):
        texts["evaluation"] = card_text.evaluation(results)
    fresh = metadata(lineage, library, licence)
    kept = {key: value for key, value in data.items() if key not in OURS}
    merged = {**fresh, **kept, "tags": _joined(fresh["tags"], kept.get("tags"))}
    title = f"# {called.rpartition('/')[2]}\n" if there is None else body
    return _write(root, _with_results(merged, lineage, results), _placed(title, texts))


def update_card(folder: str | Path, results: Sequence[EvalResult]) -> Path:
    """Put results into the card of a model, in the place of those that are there.

    A merged model without a card gets one. The card of any other is left as it is but for the
    results, which are put at its end for the first time.

    Args:
        folder: the model's.
        results: what it reaches on benchmarks; none take away those that are there.

    Raises:
        CheckpointError: when the card cannot be read, or there is neither a card nor a lineage.
        OutputError: when it cannot be written.
    """
    root = Path(folder).expanduser()
    there = _text(root)
    if there is None:
        return write_card(root, results)
    data, body = _parts(root / CARD, there)
    texts = {"evaluation": card_text.evaluation(results)}
    if not results:
        data.pop("model-index", None)
    return _write(root, _with_results(data, None, results, root), _placed(body, texts))


def check_card(folder: str | Path, *, online: bool = False) -> None:
    """Refuse a card that the Hub would not take.

    Args:
        folder: the model's.
        online: ask the Hub itself, beside reading the card as its library does.

    Raises:
        CheckpointError: when there is no card, or something is wrong with it.
    """
    path = Path(folder).expanduser() / CARD
    text = _text(path.parent)
    if text is None:
        raise CheckpointError(path, "is not there")
    _parts(path, text)
    if online:
        from huggingface_hub import ModelCard

        try:
            ModelCard(text).validate()
        except ValueError as error:
            raise CheckpointError(path, f"is not what the Hub takes: {error}") from error


def _library(root: Path) -> str:
    if is_file(root / CONFIG):
        return "peft"
    return "sentence-transformers" if read_modules(root) else "transformers"


def _base_of(root: Path) -> str | None:
    """What an adapter is of, for the usage: no path of this machine."""
    base = read_object(root / CONFIG).get("base_model_name_or_path")
    return None if base is None else _public(str(base))


def _public(base: str) -> str:
    from ..engine.told import is_path, last_name

    return last_name(base) if is_path(base) else base


def _dimension(root: Path) -> int | None:
    """Numbers of an embedding: those of the last module that says so, else of the transformer."""
    found = read_object(root / "config.json").get("hidden_size")
    for module in read_modules(root):
        config = read_object(root / module.path / "config.json")
        if module.kind == "Transformer":
            found = config.get("hidden_size", found)
        elif module.kind == "Dense":
            found = config.get("out_features", found)
    return found if isinstance(found, int) else None


def _text(root: Path) -> str | None:
    path = root / CARD
    if not is_file(path):
        return None
    try:
        return read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(path, "is not a text file in UTF-8") from error


def _parts(path: Path, text: str) -> tuple[dict[str, Any], str]:
    """The metadata and the body of a card.

    The metadata are held against what the Hub's library makes of them, without the whole of that
    library, which takes longer to import than small models to merge.

    Raises:
        CheckpointError: when the metadata are no YAML, or not what the Hub takes.
    """
    import yaml
    from huggingface_hub.repocard_data import ModelCardData

    raw = text.encode()
    block = METADATA.match(raw)
    if block is None:
        return {}, text.lstrip("\n")
    to_dict: Any = ModelCardData.to_dict
    try:
        data = yaml.safe_load(block[1].decode()) or {}
        said = to_dict(ModelCardData(**data))
        again = to_dict(ModelCardData(**yaml.safe_load(ModelCardData(**said).to_yaml() or "{}")))
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise CheckpointError(path, f"has metadata that the Hub does not take: {told}") from error
    if again != said:
        raise CheckpointError(path, "has metadata that are not the same when they are read again")
    return said, raw[block.end() :].decode().lstrip("\n")


def _joined(ours: Sequence[str], theirs: Any) -> list[str]:
    return list(dict.fromkeys([*(theirs if isinstance(theirs, list) else []), *ours]))


def _with_results(
    data: Mapping[str, Any],
    lineage: Lineage | None,
    results: Sequence[EvalResult],
    root: Path | None = None,
) -> dict[str, Any]:
    """Metadata with a `model-index` of the results, in place of the one that is there."""
    from huggingface_hub.repocard_data import ModelCardData

    if not results:
        return dict(data)
    folder = lineage.path.parent if lineage is not None else root
    assert folder is not None
    index = data.get("model-index") or [{}]
    name = index[0].get("name") or folder.resolve().name
    to_dict: Any = ModelCardData.to_dict
    told = to_dict(ModelCardData(model_name=name, eval_results=list(results)))
    return {**data, "model-index": told["model-index"]}


def _marks(section: str) -> tuple[str, str]:
    return f"<!-- mergekit_embed: {section} -->", f"<!-- mergekit_embed: end of {section} -->"


def _has(body: str, section: str) -> bool:
    return all(mark in body for mark in _marks(section))


def _placed(body: str, texts: Mapping[str, str]) -> str:
    """The body with sections between their markers, at the end for the first time."""
    for section in SECTIONS:
        if section not in texts:
            continue
        first, last = _marks(section)
        inner = f"{first}\n{texts[section]}\n{last}" if texts[section] else f"{first}\n{last}"
        if _has(body, section):
            before, _, rest = body.partition(first)
            body = before + inner + rest.partition(last)[2]
        else:
            body = f"{body.rstrip()}\n\n{inner}\n"
    return body


def _write(root: Path, data: Mapping[str, Any], body: str) -> Path:
    """Write the card whole or not at all, once it is known that it can be read again."""
    from huggingface_hub.repocard_data import ModelCardData

    path = root / CARD
    text = f"---\n{ModelCardData(**data).to_yaml()}\n---\n\n{body.lstrip()}"
    _parts(path, text)
    try:
        write_whole(path, text)
    except OSError as error:
        raise explained(root, error) from error
    return path
