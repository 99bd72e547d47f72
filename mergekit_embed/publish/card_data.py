"""The metadata of a merged model's card: what it is based on, whose licence it is under."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .lineage import Lineage

PUBLIC_DOMAIN = ("0bsd", "cc0-1.0", "pddl", "unlicense", "wtfpl")
PERMISSIVE = (
    "mit",
    "isc",
    "zlib",
    "bsd-2-clause",
    "bsd-3-clause",
    "bsd-3-clause-clear",
    "ncsa",
    "apache-2.0",
    "cdla-permissive-2.0",
    "cc-by-2.0",
    "cc-by-2.5",
    "cc-by-3.0",
    "cc-by-4.0",
)
"""From the fewest conditions to the most, as far as they can be ordered at all."""

BINDING = (
    "agpl-3.0",
    "cc-by-nc-2.0",
    "cc-by-nc-3.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "epl-2.0",
    "eupl-1.2",
    "gpl-2.0",
    "gpl-3.0",
    "lgpl-2.1",
    "lgpl-3.0",
    "mpl-2.0",
)
"""What is made of such a model is bound too. One of these prevails over all above; of two of them
neither does, for they may not go together."""

ORDER = {licence: place for place, licence in enumerate((*PUBLIC_DOMAIN, *PERMISSIVE))}


@dataclass(frozen=True)
class Licence:
    """What a merge may be used under, as far as the members' cards tell.

    Attributes:
        name: as the Hub calls it; None where a person has to decide.
        warning: what that person should know; "" where all members agree.
    """

    name: str | None
    warning: str = ""


def licence_of(licences: Mapping[str, str | None]) -> Licence:
    """The most restrictive of licences, by the order of this module; no legal advice.

    Args:
        licences: by the models' names; None for those whose cards tell none.
    """
    unknown = [name for name, licence in licences.items() if licence is None]
    known = {name: licence for name, licence in licences.items() if licence is not None}
    told = ", ".join(f"{name}: {licence}" for name, licence in known.items())
    if not known:
        return Licence(None, "No card of a model tells its licence; find out, and set one.")
    if unknown:
        missing = ", ".join(unknown)
        return Licence(None, f"The licence is not known of {missing} ({told}); set one by hand.")
    different = set(known.values())
    if len(different) == 1:
        return Licence(different.pop())
    strange = sorted(one for one in different if one not in ORDER and one not in BINDING)
    binding = sorted(one for one in different if one in BINDING)
    if strange or len(binding) > 1:
        reason = "cannot be ordered" if strange else "may not go together"
        listed = ", ".join(strange or binding)
        return Licence(None, f"The models' licences differ ({told}), and {listed} {reason}.")
    chosen = binding[0] if binding else max(different, key=ORDER.__getitem__)
    return Licence(chosen, f"The models' licences differ ({told}); {chosen} asks for the most.")


def licences(lineage: Lineage) -> dict[str, str | None]:
    """What is known of the licence of every model that gave weights, by its name.

    A model that was trained here, without a card of its own, is under its base's.
    """
    own = {one["name"]: _licence(one.get("card") or {}) for one in lineage.models}
    found: dict[str, str | None] = {}
    for one in givers(lineage):
        base = (one.get("training") or {}).get("base", {}).get("name")
        found[one["name"]] = own[one["name"]] or own.get(base)
    return found


OTHER = "other: "
"""Before the name of a licence that the Hub has no word for."""


def _licence(card: Mapping[str, Any]) -> str | None:
    if card.get("license") != "other":
        return card.get("license")
    return f"{OTHER}{card['license_name']}" if "license_name" in card else None


def givers(lineage: Lineage) -> list[Mapping[str, Any]]:
    """The models that weights came from; not folders of statistics."""
    measured = {"fisher.safetensors", "gram.safetensors"}
    return [one for one in lineage.models if not measured.intersection(one["files"])]


def based_on(lineage: Lineage) -> list[str]:
    """The models of the Hub that a merge is made from, by their ids, each once.

    In place of a model that is not there stand those that it was made from in turn.
    """
    return list(dict.fromkeys(_ids(lineage.models, lineage.ancestors, set())))


def _ids(models: Any, ancestors: Mapping[str, Mapping[str, Any]], seen: set[str]) -> Iterator[str]:
    for one in models:
        past = one.get("lineage")
        base = (one.get("training") or {}).get("base", {}).get("name", "")
        if "hub" in one:
            yield one["hub"]["id"]
        elif past in ancestors and past not in seen:
            seen.add(past)
            yield from _ids(ancestors[past]["models"], ancestors, seen)
        elif base.count("/") == 1:
            yield base.partition("@")[0]


def union_of(lineage: Lineage, key: str) -> list[str]:
    """What the cards of all models list under a key of theirs, each once, in order."""
    listed = [name for one in lineage.models for name in (one.get("card") or {}).get(key, ())]
    return list(dict.fromkeys(listed))


def metadata(lineage: Lineage, library: str, licence: Licence) -> dict[str, Any]:
    """What the card's metadata says, but for results.

    Args:
        lineage: of the model.
        library: "sentence-transformers", "transformers" or "peft".
        licence: of the merge.
    """
    ids = based_on(lineage)
    name, other = licence.name, None
    if name is not None and name.startswith(OTHER):
        name, other = "other", name.removeprefix(OTHER)
    sentence = library == "sentence-transformers"
    task = "sentence-similarity" if sentence else "feature-extraction"
    tags = [*(["sentence-transformers"] if sentence else []), "feature-extraction", task]
    found: dict[str, Any] = {
        "language": union_of(lineage, "languages"),
        "license": name,
        "license_name": other,
        "library_name": library,
        "pipeline_tag": task,
        "tags": list(dict.fromkeys([*tags, "merge", "mergekit_embed"])),
        "datasets": union_of(lineage, "datasets"),
        "base_model": ids,
        "base_model_relation": "merge" if ids else None,
    }
    return {key: value for key, value in found.items() if value}
