"""The sections of a merged model's card, in Markdown that the Hub shows: no HTML, no pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from ..recipe.suited import lists_of_models
from .card_data import Licence, givers
from .lineage import Lineage
from .lineage_tree import Branch

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

WIDTH = 20
"""Characters of a bar that stands for the whole."""


def usage(name: str, library: str, base: str | None) -> str:
    """Three lines that load the model and use it.

    Args:
        name: the Hub id, or the folder counted from the working directory.
        library: as in the metadata.
        base: what an adapter is of.
    """
    quoted = json.dumps(name, ensure_ascii=False)
    if library == "sentence-transformers":
        lines = [
            "from sentence_transformers import SentenceTransformer",
            f"model = SentenceTransformer({quoted})",
            'print(model.encode(["A first text.", "Another one."]).shape)',
        ]
    elif library == "peft":
        lines = [
            "from transformers import AutoModel",
            f"model = AutoModel.from_pretrained({json.dumps(base, ensure_ascii=False)})",
            f"model.load_adapter({quoted})",
        ]
    else:
        lines = [
            "from transformers import AutoModel, AutoTokenizer",
            f"model, tokenizer = (k.from_pretrained({quoted}) for k in (AutoModel, AutoTokenizer))",
            'print(model(**tokenizer("A text.", return_tensors="pt")).last_hidden_state.shape)',
        ]
    return "## Usage\n\n" + fenced("\n".join(lines), "python")


def mixture(lineage: Lineage) -> str:
    """What the model is made of: a table with a bar for what each member weighs."""
    method = lineage.recipe["merge_method"]
    rows = list(_shares(lineage.recipe))
    weighs = all(share is not None for _, share in rows)
    head = "| model | share | |\n| --- | ---: | --- |" if weighs else "| model |\n| --- |"
    lines = []
    for name, share in rows:
        cells = [_linked(name, lineage)]
        if weighs and share is not None:
            cells += [f"{100 * share:.1f} %", "\u2588" * round(WIDTH * max(share, 0.0))]
        lines.append(f"| {' | '.join(cells)} |")
    base = lineage.recipe.get("base_model")
    told = f"\n\nDeltas start at {_linked(_shown(base), lineage)}." if base is not None else ""
    named = f"Merged by `{method}`."
    return f"## What it is made of\n\n{named}\n\n{head}\n" + "\n".join(lines) + told


def _shares(recipe: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The members, and what each weighs of the whole; None where weights are no plain numbers."""
    base = recipe.get("base_model")
    entries = [entry for _, models in lists_of_models(recipe) for entry in models]
    members = [one for one in entries if base is None or one["model"] != base] or entries
    common = (recipe.get("parameters") or {}).get("weight")
    weights = [(one.get("parameters") or {}).get("weight", common) for one in members]
    plain = [float(w) for w in weights if isinstance(w, int | float) and w >= 0]
    total = sum(plain)
    shared = len(plain) == len(weights) and total > 0 and "slices" not in recipe
    shares: list[float | None] = [None] * len(members)
    if shared:
        shares = [weight / total for weight in plain]
    yield from zip((_shown(one["model"]) for one in members), shares, strict=True)


def _shown(model: Any) -> str:
    """What a model is called; a recipe in its place by its method and models."""
    if not isinstance(model, dict):
        return str(model)
    inner = [_shown(one["model"]) for _, models in lists_of_models(model) for one in models]
    return f"{model['merge_method']}({', '.join(inner)})"


def _linked(name: str, lineage: Lineage) -> str:
    """A model of the Hub as a link, any other as code."""
    hub = next((one["hub"] for one in lineage.models if one["name"] == name and "hub" in one), None)
    if hub is None:
        return f"`{name.replace('`', '').replace('|', '/')}`"
    return f"[{hub['id']}](https://huggingface.co/{hub['id']}/tree/{hub['revision']})"


def recipe(lineage: Lineage) -> str:
    """The recipe as YAML, without what every recipe has by default."""
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    stream = StringIO()
    yaml.dump(_brief(lineage.recipe), stream)
    return "## Recipe\n\n" + fenced(stream.getvalue().strip("\n"), "yaml")


def _brief(said: Mapping[str, Any]) -> dict[str, Any]:
    from ..recipe.schema import RecipeFile

    fields = RecipeFile.model_fields
    kept = {k: v for k, v in said.items() if k not in fields or fields[k].default != v}
    kept = {key: value for key, value in kept.items() if (key, value) != ("granularity", "tensor")}
    found: dict[str, Any] = {}
    for key in ("merge_method", "base_model", *kept):
        found |= {key: kept[key]} if key in kept else {}
    for _, models in lists_of_models(found):
        models[:] = [
            {**one, "model": _brief(one["model"])} if isinstance(one["model"], dict) else one
            for one in models
        ]
    return found


def evaluation(results: Sequence[EvalResult]) -> str:
    """The results as a table; nothing where there are none."""
    if not results:
        return ""
    lines = ["## Evaluation", "", "| task | data | metric | value |", "| --- | --- | --- | ---: |"]
    for one in results:
        value = one.metric_value
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        cells = [one.task_name or one.task_type, one.dataset_name]
        cells += [one.metric_name or one.metric_type, shown]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def history(lineage: Lineage, tree: Branch, licence: Licence) -> str:
    """Where the model comes from, and how its merge is made again."""
    again = "boom-merge merge_lineage.json --members DIR -o again"
    parts = [
        "## Lineage",
        fenced("\n".join(_drawn(tree, "")), "text"),
        "`merge_lineage.json` has the hashes of everything that was merged. With the models at "
        f"hand the same bytes are merged again by `{again}`; `boom verify` checks this folder.",
    ]
    if licence.warning:
        parts.append(f"**Licence.** {licence.warning}")
    return "\n\n".join(parts)


def _drawn(tree: Branch, indent: str) -> Iterator[str]:
    role = [tree.role] if tree.role not in {"", "member"} else []
    facts = ", ".join([*role, *tree.facts])
    yield f"{indent}{tree.name}{'   ' + facts if facts else ''}"
    for branch in tree.branches:
        yield from _drawn(branch, f"{indent}  ")


def fenced(text: str, language: str) -> str:
    """A block of code; what is in it cannot end it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def opening(lineage: Lineage, dimension: int | None) -> str:
    """What the model is, in a sentence."""
    base = lineage.recipe.get("base_model")
    count = sum(one["name"] != base for one in givers(lineage))
    kind = "adapter" if lineage.result == "adapter" else "text-embedding model"
    size = f" It makes a vector of {dimension} numbers of a text." if dimension else ""
    return f"This {kind} was merged from {count} models by mergekit_embed.{size}"
