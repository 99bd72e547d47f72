"""The page on searches, made from the schema.

python -m mergekit_embed.search.reference docs/search.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..recipe.tables import keys, table
from .schema import SearchEntry

INTRODUCTION = """# Searching for coefficients

A recipe with a `search` block says what to merge, and on which data the parameters of the merge
are found. `boom-search recipe.yaml` finds them and writes a plain recipe, `found.yaml`, which
`boom-merge` runs without data. `boom-merge recipe.yaml` does both.

```yaml
merge_method: self_positioning
base_model: ./bert-base
models:
  - model: ./members/retrieval
  - model: ./members/similarity
search:
  data:
    questions: {path: questions.jsonl, kind: retrieval}
    pairs: {path: pairs.jsonl, kind: sts}
```

```sh
boom-search recipe.yaml --dry-run           # what would be searched, and the memory it takes
boom-search recipe.yaml                     # searched/recipe/found.yaml and search.json
boom-merge searched/recipe/found.yaml
boom-search recipe.yaml --cache off         # members are read at every step, and never kept
```

In Python: `from mergekit_embed.search import search; search("recipe.yaml").recipe`. Runnable
recipes are in `recipes/search/`. This page is made from the schema by
`python -m mergekit_embed.search.reference docs/search.md`.

## What is found

The method of the recipe says what is searched, and its own parameters are where a search starts.
"""

NOTES = """\
`normalize` turns free weights into such that sum to 1, and `normalize: false` the other way
round. `groups` gives every block, layer, module or component of the model weights of its own;
angles of Self-Positioning are measured on what `granularity` says, the whole model by default.

Self-Positioning is the method of arXiv 2410.15035: its parameters, SGD, a probe set of 32,000
rows drawn evenly over tasks, and `mu * lambda` added to the loss (0, 0.05 and 0.10 were tried
there, and below 0.05 was best). Ours: how slerp treats lengths (docs/methods.md), the learning
rate, held-out batches and early stopping, no dropout, weights by group, free and simplex weights,
L1.

### The gradient, and what it costs

A merge of this kind is `theta_0 + sum_k c_k V_k`, with `V_k` the task vectors and `c` a function
of the parameters and the Gram matrix of the `V_k`, which is measured once. The model's loss
enters through K numbers alone, `dL/dc_k = <dL/dtheta, V_k>`. So a step is one ordinary forward
and backward pass of one model, then one pass over the members' tensors for the inner products,
and one to put the model at the next point; from `c` on to the parameters autograd goes in
float64. It is the exact gradient (tests hold it against autograd through all weights, to 1e-5).

Memory is that of one model and its gradients in float32, of the activations, and of a chunk of
every member, whatever K is. `--cache` keeps members on the device, as they are stored, where they
fit.

Measured by `benchmarks/search.py --write` with all-MiniLM-L6-v2, three members and two cores: a
step took 1.05 times a plain forward and backward of 32 rows with members kept and 1.08 times with
members read at every step, and 1.14 and 1.23 times of 8 rows (medians of 15, taking turns). The
peak memory of a search that reads them was 0.98 GB with one member and with seven; 1.7 GB when it
kept the seven.

### Other strategies
"""

JUDGING = """\
Those may judge by dev tasks (`objective: dev` or `borda`), which have no gradient; such a search
has no `data`. A Borda count is how many of the members a point is better than, summed over the
tasks.

## The probe set

Data sets are named as in a training plan ([docs/training.md](training.md)), with the same kinds,
losses, prompts and mining. Rows are drawn evenly over tasks; a task with fewer rows gives them
all, and the others more. Batches are of one data set; a data set without rows for one batch is an
error. Texts are tokenised once, and negatives drawn once. Of each data set's batches a part is
held out (`held_out`): points are judged on it, and gradients come from the rest.

**Take rows that no member was trained on**, if there are any. On rows that it knows, the member
that has seen most of them looks best, whatever it is worth elsewhere: in our [study](study.md) a
greedy soup and CMA-ES found merges half and a third of a point better on other rows.

Every task counts the same: its loss is told as a multiple of what it was at the first point, so
that a search begins at 1, and 0.9 is a tenth less in the mean of the tasks. Losses as they are do
not compare. Three bags of all-MiniLM-L6-v2 had a CoSENT loss of 8.8 and an InfoNCE of 0.2; in the
plain mean of all batches (`balance: batches`), descent doubled `lambda` to bring the first to 7.4,
doubled the second, and lost 5 points on dev tasks. Where all tasks have one contrastive loss, as in
the paper, that mean is the paper's objective.

A probe set that shares a query, a sentence pair or a labelled text with a task of `dev` is
refused, with file and line; `overlap: drop` leaves such rows out.

## Keys of `search`
"""

OUTCOME = """## What is written
"""

ENDS = """\
The comparison on dev tasks has what was found, the uniform mean, Multi-SLERP with equal weights
(tensor by tensor) and the best single member, each with the mean over tasks, and how far the
found one leads. Its interval holds the middle 95 % of 2000 leads for which the texts of every task
(queries, pairs, labelled texts) are drawn anew with replacement, the same for all models: it says
how much hangs on the choice of texts, and nothing of the choice of tasks.

A merge that needs no search and is better on these tasks takes the place of what was found:
`found.yaml` is then that merge, and its comment, `chosen` in `search.json` and the command say so.
So a search on dev tasks hands out nothing worse than they. Choosing among four flatters the chosen
one a little; tasks that took no part in it tell what it is worth. `fallback: false` keeps what was
found.

The best point that was judged is what is found. A search ends after its steps, when `patience`
judgements brought nothing better, when the time is up, or when a loss or a gradient is not
finite; in all these cases the best so far is written. It is an error when even the start has no
finite loss, or when a member's matrices look nothing like the base's (cosine below 0.5).

What is interrupted or killed goes on by the same command, from the numbers that are kept beside
the output every few seconds, to the same end. `--restart` begins anew, as does a changed recipe,
probe set or member.

A search takes whole models: recipes with `slices`, `sweep`, `post`, another vocabulary or
`adapter_output`, and members that are recipes, are refused with what to do instead. Members with
adapters (`BASE+ADAPTER`) are read as anywhere else.
"""


METHODS = (
    (
        "`self_positioning`",
        "a scalar above 0 for each member (softplus), and `lambda`",
        "1, or what the recipe says",
    ),
    (
        "`task_arithmetic`",
        "a free weight for each member; `lambda` stays as it is",
        "1 / K, or what the recipe says",
    ),
    (
        "`linear`",
        "weights that are positive and sum to 1 (softmax)",
        "equal, or what the recipe says",
    ),
)

STRATEGIES = (
    (
        "`few_shot`",
        "`linear`, `task_arithmetic`",
        "judges every member alone; weights are `softmax(-loss / temperature)` (after LM-Cocktail, "
        "arXiv 2311.13534)",
    ),
    (
        "`greedy_soup`",
        "`linear`, `task_arithmetic`",
        "members join in the order of their own worth, and stay if the mean is no worse "
        "(arXiv 2203.05482)",
    ),
    (
        "`forward_selection`",
        "`linear`, `task_arithmetic`",
        "at every turn the member that helps most joins, perhaps again, until none helps",
    ),
    (
        "`cma_es`",
        "all",
        "evolves the numbers named in `parameters`, within their bounds; a point costs a merge "
        "into the model in memory",
    ),
    (
        "`optuna`",
        "all",
        "the same numbers by tree-structured Parzen estimators (arXiv 2304.11127); with `axes` it "
        "trades tasks off, and keeps every point that no other beats on all of them",
    ),
)

FILES = (
    (
        "`found.yaml`",
        "the recipe with what was found; models are named from its own folder",
    ),
    (
        "`front/1.yaml`, ...",
        "with `axes`: a recipe for every point of the front, from the best on the first axis on",
    ),
    (
        "`search.json`",
        "every point that was judged with its value by task, the loss of every step, lengths and "
        "angles of the members' vectors, the probe set's rows and hashes, why the search ended; "
        "with `axes`, the front; with `dev`, the comparison",
    ),
)


def markdown() -> str:
    """docs/search.md."""
    parts = [
        INTRODUCTION,
        *table(("method", "what `gradient` finds", "starts at"), METHODS),
        NOTES,
        *table(("`strategy`", "methods", "what it does"), STRATEGIES),
        JUDGING,
        *table(("key", "value", "meaning"), keys(SearchEntry)),
        OUTCOME,
        *table(("file", "what it is"), FILES),
        ENDS,
    ]
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
