"""The tables of the study: which models each compares, the first with all others.

Rows are a function of a lab and a seed; what several tables need is trained once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from .lab import Candidate, Lab
from .table import LeftOut, Rows, Table

BAGS = (40, 60, 80, 100)
"""The bags that methods are compared on, one of the sets that BOOM names effective."""

BEST = Path(__file__).parents[2] / "recipes" / "best.yaml"
"""The recipe that the study recommends."""

RATES = (
    (2.5e-5, 1),
    (5e-5, 1),
    (1e-4, 1),
    (2e-4, 1),
    (4e-4, 1),
    (5e-5, 2),
    (1e-4, 2),
    (2e-4, 2),
    (5e-5, 4),
    (2e-4, 4),
)
"""Learning rates, and how often the corpus is gone through at them."""

WEIGHTLESS = frozenset({"model_stock", "sce", "median", "trimmed_mean", "ram", "ramplus_tl"})
"""Methods that have no weights, or that weigh members themselves."""

METHODS: Mapping[str, Mapping[str, Any]] = {
    "linear": {},
    "karcher": {},
    "task_arithmetic": {"normalize": True},
    "model_stock": {},
    "ties": {},
    "dare_linear": {},
    "dare_ties": {},
    "della_linear": {},
    "della": {},
    "breadcrumbs": {},
    "breadcrumbs_ties": {},
    "sce": {},
    "median": {},
    "trimmed_mean": {},
    "ram": {},
    "ramplus_tl": {},
}
"""Every method for more than two members, at its defaults but for weights that sum to 1."""


def full(lab: Lab, seed: int, label: str = "full corpus", **plan: Any) -> Candidate:
    """One model trained on all rows, once."""
    return lab.trained([{"name": "full", "ratio": 100}], seed, **plan)[0].named(label)


def bags(lab: Lab, seed: int, ratios: Sequence[float], **plan: Any) -> Rows:
    """Members trained on random parts of every data set, in percent; equal ones have other rows."""
    names = [f"bag-{ratio:g}-{place}" for place, ratio in enumerate(ratios)]
    again = [ratios[:place].count(ratio) > 0 for place, ratio in enumerate(ratios)]
    entries = [
        {"ratio": ratio} | ({"name": name} if twice else {})
        for ratio, name, twice in zip(ratios, names, again, strict=True)
    ]
    return [lab.trained([entry], seed, **plan)[0] for entry in entries]


def settings(lab: Lab, seed: int) -> Rows:
    """What all other tables train with is chosen here, on a seed that they do not have."""
    found = []
    for rate, epochs in RATES:
        own = {"learning_rate": rate, "epochs": epochs}
        found.append(full(lab, seed, f"rate {rate:g}, epochs {epochs}", training=own))
    return [*found, lab.base]


def schedules(lab: Lab, seed: int) -> Rows:
    """The full corpus once, in every order of batches."""
    names = (
        "batch_shuffled",
        "row_shuffled",
        "dataset_sequential",
        "task_sequential",
        "two_stage",
    )
    found = [full(lab, seed, name, schedule=name) for name in names[1:]]
    return [full(lab, seed, names[0]), *found, lab.base]


def granularity(lab: Lab, seed: int) -> Rows:
    """What a member is trained on: a data set, a task, a cluster of data sets, or a bag."""
    found = [full(lab, seed)]
    for each in ("dataset", "task", "cluster"):
        data = lab.data()
        if each == "cluster":
            data = {name: {**one, "cluster": cluster_of(name)} for name, one in data.items()}
        members = lab.trained([{"each": each}], seed, data=data)
        found.append(lab.merged(f"a member for every {each}", members))
    found.append(lab.merged("bags {40, 60, 80, 100}", bags(lab, seed, BAGS)))
    return [*found, lab.base]


def cluster_of(name: str) -> str:
    """Data sets of one source are a cluster: what comes before the first hyphen."""
    return name.partition("-")[0]


def bagging(lab: Lab, seed: int) -> Rows:
    """Bags against the full corpus, once, for longer, and as soups of several seeds."""
    found = [full(lab, seed)]
    sets: tuple[tuple[float, ...], ...] = (
        (80, 100),
        (60, 60, 60),
        (20, 40, 60, 80, 100),
        (40, 60, 80, 100),
    )
    for ratios in sets:
        label = "bags {" + ", ".join(f"{ratio:g}" for ratio in ratios) + "}"
        found.append(lab.merged(label, bags(lab, seed, ratios)))
    longer = bags(lab, seed, BAGS, training={"epochs": 2})
    found.append(lab.merged("four bags, two epochs", longer))
    found.append(lab.merged("four bags, two epochs, a soup", longer, "linear"))
    halves = lab.trained([{"ratio": 50}, {"complement": "bag-50"}], seed)
    found.append(lab.merged("bags {50, the other 50}", halves))
    steps = found[0].cost.steps
    for times in (1.8, 3.0):
        own = {"steps": round(times * steps)}
        found.append(full(lab, seed, f"full corpus, {times:g} times the steps", training=own))
    for count in (2, 5):
        soup = [full(lab, 1000 * seed + one) for one in range(count)]
        found.append(lab.merged(f"soup of {count} seeds", soup, "linear", equal=True))
    return [*found, lab.base]


def methods(lab: Lab, seed: int) -> Rows:
    """Ways to merge the same bags."""
    members = bags(lab, seed, BAGS)
    found = [full(lab, seed), lab.merged("multislerp", members)]
    for name, parameters in METHODS.items():
        own = {"parameters": dict(parameters)} if parameters else {}
        weighed = name not in WEIGHTLESS
        recipe = lab.recipe(members, name, weighed=weighed, **own)
        found.append(lab.candidate(name, recipe, members))
    found += [_guided(lab, members, gamma, "tensor") for gamma in (-1.0, 0.0, 1.0, 2.0)]
    found += [_guided(lab, members, 1.0, unit) for unit in ("model", "layer", "row", "element")]
    found += _searched(lab, members, seed, "")
    if lab.corpus.fresh:
        found += _searched(lab, members, seed, ", a probe of other rows", fresh=True)
    return [*found, *(one.named(f"alone: {one.label}") for one in members), lab.base]


def _searched(lab: Lab, members: Rows, seed: int, where: str, *, fresh: bool = False) -> Rows:
    """Every search with a loss, on rows that members know, or on others."""
    found = [positioned(lab, members, seed, f"self_positioning{where}", fresh=fresh)]
    small = {**lab.probe(fresh=fresh), "probe": 500, "batch_size": 16}  # a batch of every data set
    soup = {"strategy": "greedy_soup", **small}
    recipe = lab.recipe(members, "linear", weighed=False, search=soup)
    found.append(lab.searched(f"greedy soup{where}", recipe, members, seed))
    evolved = {"strategy": "cma_es", "parameters": {"weight": [0.0, 1.0]}, "evaluations": 40}
    recipe = lab.recipe(members, "linear", weighed=False, search=evolved | small)
    found.append(lab.searched(f"linear by CMA-ES{where}", recipe, members, seed))
    return found


def _guided(lab: Lab, members: Rows, gamma: float, granularity: str) -> Candidate:
    label = f"delta_guided, gamma {gamma:g}, {granularity}"
    own = {"granularity": granularity, "parameters": {"gamma": gamma}}
    return lab.merged(label, members, "delta_guided", equal=True, **own)


def positioned(
    lab: Lab, members: Rows, seed: int, label: str, *, fresh: bool = False, **search: Any
) -> Candidate:
    """Self-Positioning of some members on a probe set, of rows that they know unless `fresh`."""
    own = {"probe": 2000, "steps": 100, "evaluate_every": 20, **search, **lab.probe(fresh=fresh)}
    recipe = lab.recipe(members, "self_positioning", weighed=False, search=own)
    return lab.searched(label, recipe, members, seed)


def unseen(lab: Lab, seed: int, names: Sequence[str]) -> Rows:
    """The full corpus, and the recipe that the study recommends, of some data sets."""
    data = lab.data(names)
    return [full(lab, seed, data=data), recommended(lab, seed, data=data), lab.base]


def recommendation(lab: Lab, seed: int) -> Rows:
    """The full corpus, once and for as many steps, and the recipe that the study recommends."""
    found = [full(lab, seed), recommended(lab, seed)]
    longer = {"steps": 3 * found[0].cost.steps}
    found.append(full(lab, seed, "full corpus, 3 times the steps", training=longer))
    losses = codiemb_losses(lab)
    found.append(full(lab, seed, "full corpus, CoDiEmb's losses", tasks=losses))
    merged = recommended(lab, seed, tasks=losses)
    found.append(merged.named("recipes/best.yaml, CoDiEmb's losses"))
    return [*found, lab.base]


def best() -> dict[str, Any]:
    """The recipe that the study recommends, as it is shipped."""
    content: dict[str, Any] = YAML(typ="safe").load(BEST)
    return content


def recommended(lab: Lab, seed: int, **plan: Any) -> Candidate:
    """What the recipe makes of bags of its names, `bag-PERCENT`."""
    content = best()
    names = [Path(model["model"]).name for model in content["models"]]
    members = bags(lab, seed, [int(name.removeprefix("bag-")) for name in names], **plan)
    for model, member in zip(content["models"], members, strict=True):
        model["model"] = str(member.reference)
    content["base_model"] = str(lab.base.reference)
    return lab.candidate("recipes/best.yaml", content, members)


def incremental(lab: Lab, seed: int) -> Rows:
    """Data sets arrive one after the other: an update member against training anew."""
    names = list(lab.corpus.train)
    first, arriving = names[:2], names[2:5]
    found = [full(lab, seed, "full retraining")]
    start = lab.trained([{"name": "old", "ratio": 100}], seed, data=lab.data(first))[0]
    found += [
        _updated(lab, seed, start, first, arriving, history) for history in (0.0, 0.2, 0.4, 1.0)
    ]
    return [*found, start.named("before the arrivals"), lab.base]


def _updated(
    lab: Lab, seed: int, start: Candidate, first: list[str], arriving: list[str], history: float
) -> Candidate:
    """A model after all arrivals, each merged in as a member on new data and some of the old."""
    known, present = list(first), start
    for place, new in enumerate(arriving):
        ratios: dict[str, float] = {new: 100}
        if history:
            ratios |= dict.fromkeys(known, 100 * history)
        entry = {"name": "update", "ratio": ratios, "draw": "core"}
        update = lab.trained([entry], seed, data=lab.data([*known, new]))[0]
        known.append(new)
        label = f"updates with {100 * history:g} % of the old data"
        name = label if place == len(arriving) - 1 else f"arrival {place + 1}"
        present = lab.merged(name, [present, update], equal=True)
    return present


def positions(lab: Lab, seed: int) -> Rows:
    """What Self-Positioning finds, by its settings, and beside a grid on two members."""
    members = lab.trained([{"each": "task"}], seed)
    found = [full(lab, seed), lab.merged("multislerp", members, equal=True)]
    short = {"steps": 50, "evaluate_every": 10}
    settings: Mapping[str, Mapping[str, Any]] = {
        "mu 0, rate 0.05, 50 steps, probe of 2000 rows": {},
        "rate 0.01": {"learning_rate": 0.01},
        "mu 0.05": {"mu": 0.05},
        "mu 0.1": {"mu": 0.1},
        "25 steps": {"steps": 25},
        "100 steps": {"steps": 100},
        "probe of 1000 rows": {"probe": 1000},
        "probe of 4000 rows": {"probe": 4000},
    }
    for label, own in settings.items():
        found.append(positioned(lab, members, seed, label, **{**short, **own}))
    if lab.corpus.fresh:
        label = "a probe of other rows"
        found.append(positioned(lab, members, seed, label, fresh=True, **short))
    found.append(_iterative(lab, members, seed, short))
    pair = members[:2]
    found.append(positioned(lab, pair, seed, "two members", **short))
    for share in (0.25, 0.5, 0.75):
        found += _grid(lab, pair, share)
    return [*found, lab.base]


def _iterative(lab: Lab, members: Rows, seed: int, search: Mapping[str, Any]) -> Candidate:
    """Members joined one at a time, each time with a search of two."""
    present = members[0]
    for place, member in enumerate(members[1:], start=2):
        if place > 2:
            present = lab.written(present)
        last = place == len(members)
        label = "one member after the other" if last else f"first {place}"
        present = positioned(lab, [present, member], seed, label, **search)
    return present


def _grid(lab: Lab, pair: Rows, share: float) -> Rows:
    found = []
    for factor in (0.7, 1.0, 1.3, 1.6):
        recipe = lab.recipe(pair, "self_positioning", weighed=False)
        for model, weight in zip(recipe["models"], (1 - share, share), strict=True):
            model["parameters"] = {"weight": weight}
        recipe["parameters"] = {"lambda": factor}
        found.append(lab.candidate(f"grid: {share:g}, lambda {factor:g}", recipe, pair))
    return found


def codiemb(lab: Lab, seed: int) -> Rows:
    """CoDiEmb's losses and its fusion, against InfoNCE with CoSENT, soups and bags."""
    losses = codiemb_losses(lab)
    plain = full(lab, seed, "InfoNCE and CoSENT")
    joint = full(lab, seed, "CoDiEmb's losses", tasks=losses)
    entry = {"name": "full", "ratio": 100, "checkpoints": [60, 80, 100]}
    run = lab.trained([entry], seed, tasks=losses)
    fused = _guided(lab, run, 1.0, "tensor").named("its checkpoints, fused by their deltas")
    soup = lab.merged("its checkpoints, a soup", run, "linear", equal=True)
    found = [plain, joint, fused, soup]
    members = bags(lab, seed, BAGS, tasks=losses)
    found.append(lab.merged("four bags with its losses, Multi-SLERP", members))
    merged = recommended(lab, seed, tasks=losses)
    return [*found, merged.named("four bags with its losses, by how far layers moved"), lab.base]


def codiemb_losses(lab: Lab) -> dict[str, Any]:
    """CoDiEmb's losses for retrieval, with mined negatives, and for similarity."""
    hard = {"negatives": "hard", "temperature": lab.setting.temperature}
    return {
        "retrieval": {
            "loss": {"name": "info_nce", "parameters": hard},
            "mine": {"top": 30, "keep": 4, "below": 0.95},
        },
        "sts": {"loss": {"name": "codiemb_sts"}},
    }


TABLES: tuple[Table, ...] = (
    Table(0, "Settings", "The full corpus at several rates and lengths.", settings),
    Table(1, "Schedules", "The full corpus once, its batches in every order.", schedules),
    Table(2, "Granularity", "What one member is trained on. Merged by Multi-SLERP.", granularity),
    Table(3, "Bags", "Bags against the full corpus, once and for as many steps.", bagging),
    Table(4, "Methods", "Ways to merge the bags {40, 60, 80, 100}.", methods),
    Table(5, "Incremental", "Three data sets arrive one after the other.", incremental),
    Table(6, "Self-Positioning", "Members for each task, positioned on a probe set.", positions),
    Table(7, "CoDiEmb", "Losses for retrieval and similarity, and fusion of a run.", codiemb),
    LeftOut(8, "Left out", "Trained without a data set, and measured on its task.", unseen),
    Table(
        9,
        "Recommendation",
        "What the study recommends, on the whole of the dev tasks.",
        recommendation,
        whole=True,
    ),
)
