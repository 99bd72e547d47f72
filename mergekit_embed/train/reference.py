"""The reference of training plans, made from their schema.

    python -m mergekit_embed.train.reference docs/training.md

writes the page.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import BaseModel

from ..recipe.tables import keys, table
from .layouts import TAKES
from .objectives import DEFAULTS
from .reference_running import FILES, RESULTS, RUNNING
from .reference_texts import DEV, MINING, UPDATES
from .schedules import ORDERS
from .schema import (
    DatasetEntry,
    DirichletEntry,
    LossEntry,
    MemberEntry,
    MineEntry,
    PlanFile,
    PromptEntry,
    Settings,
)
from .schema_training import EarlyStopEntry, LoraEntry, OrderEntry, TrainingEntry
from .specs import OWN_NEGATIVES

INTRODUCTION = """\
# Training members

`boom-train plan.yaml` trains members of one base, each on its part of the data, and writes the
recipe that merges them. A plan is a YAML file:

```yaml
model: ./bert-base                     # what all members start from
data:
  questions: {path: questions.jsonl, kind: retrieval}
  reviews: {path: reviews.jsonl, kind: classification, batch_size: 64}
  similarity: {path: similarity.jsonl, kind: sts}
members: [20, 40, 60, 80, 100]         # percent of the rows of every data set
```

```sh
boom-train plan.yaml --dry-run             # rows, batches, steps and tokens of every member
boom-train plan.yaml --list-rows bag-20    # every row that a member is trained on
boom-train plan.yaml -o out                # out/members/bag-20, ..., out/merge.yaml
boom-train plan.yaml -o out --merge        # and out/merged
```

Defaults are those of BOOM (arXiv 2602.05787) where it says: the bags {20, 40, 60, 80, 100},
batch-level shuffling, a global batch of 256, 1 positive and 7 hard negatives, InfoNCE at a
temperature of 0.02, a learning rate of 5e-5 with a warm-up of a tenth, one epoch, 512 tokens.
How the rate falls, weight decay and the limit of gradients' length are our choice. Plans for
published systems are in `recipes/train/`; their comments say what is a report's and what is ours.

This page is made from the schema by `python -m mergekit_embed.train.reference docs/training.md`.
Editors that know JSON Schema complete and check plans with `boom schema plan > plan.schema.json`
and the first line `# yaml-language-server: $schema=plan.schema.json`.

## Keys
"""

DATA = """\
## Data

A data set is a file of JSON Lines or Parquet, or a data set of the Hub, and of one kind:
"""

ROWS = """\
- A single text may stand where a list of texts may. `negative_1`, `negative_2`, ... are read as
  `negative` is. `columns` gives other names; columns that nobody asks for are left alone.
- Every row is checked before anything is trained. A bad one is left out and told with its file and
  line; more than `bad_rows` percent of a data set are an error. A file holds rows of one layout.
- Rows of a class get a text of the same class as positive and texts of other classes as negatives,
  drawn among the member's rows anew in every epoch. A class of one row has that row as its
  positive: its two embeddings differ by dropout alone.
- `negatives` is the number for all rows of a data set, or the most that any of its rows has, if
  that is less. A row with more draws among them in every epoch. A row with fewer is filled up:
  with positives of other rows of the member, never its own, for `retrieval` and `pair`, where the
  rest of the batch counts as negatives anyway; by repeating its own for `classification` and
  `clustering`. A data set without any is trained without, unless they are mined.
- A row with fewer than `positives` repeats its own; one with more draws among them.
- A text's prompt goes in front of it as it stands. Queries get `query`; positives and negatives of
  rows with a query get `document`; sentences, pairs and texts with labels are all alike and get
  `query`. What a plan leaves out is left to the model's own prompts.

What a data set says counts before what its task says, and that before the plan:
"""

BAGS = """\
## Members

A member's rows are drawn for each data set by itself, without replacement. Of n rows, k percent are
exactly round(k n / 100), a half rounded up: the rows that draw the least. What a row draws is

    SplitMix64(key + (identity + 1) * 0x9E3779B97F4A7C15)
    key = BLAKE2b with 8 bytes, little-endian, of the text ["rows", SEED, "DATA SET", "MEMBER"]
    identity = XXH3-64 of its texts (query and positives; or both sentences and the score; or text
               and label); another number for a second row of the same content

in unsigned 64-bit integers; the text is JSON as Python writes it. So it is the same on every
machine, whatever versions of libraries it has, and

- a bag depends on the seed, the names of data set and member, and the rows' contents, and on
  nothing else: not on other data sets, other members, the file's format or the order of its rows;
- rows that are added or taken away change it only where they are in it themselves, or push a row
  over its edge; hard negatives have no part in the identity, so mining changes no bag;
- `draw` gives the name to draw by: members that share one have nested parts, and a core that is
  drawn once stays the same in later plans.

```yaml
members:
  - ratio: 50                          # bag-50: half of every data set
  - complement: bag-50                 # bag-50-rest: exactly the other half
  - {each: task}                       # a member for every task, on all of its rows
  - {each: cluster, ratio: 80}         # a member for every cluster of data sets
  - {name: mix, ratio: {questions: 100, reviews: 30}}
  - dirichlet: {count: 3, alpha: 1.0}  # mixture-1, -2, -3
  - {name: run, ratio: 100, checkpoints: [60, 80, 100]}
  - {name: control, ratio: 100, epochs: 3, merge: false}
```

An entry has one of `ratio`, `complement`, `each` (perhaps with a `ratio`) and `dirichlet`. A
mixture draws shares p ~ Dirichlet(alpha, ..., alpha), with the method of Marsaglia and Tsang, and
takes p of its rows from every data set, or all where there are fewer; what is missing then comes
from the others, in proportion to p.
"""

SCHEDULES = """\
## Schedules

A batch is a global one: all devices take equal consecutive pieces of it. In every epoch the rows
of each data set are shuffled and cut into batches of its `batch_size`; a short last one is dropped,
and other rows are left over in another epoch. Then
"""

SCHEDULE_NOTES = """\
Only `row_shuffled` and `size_power` make batches in another way. `batch_shuffled` is BOOM's, as its
code has it: a data set's frequency is proportional to its size. `dataset_sequential`,
`task_sequential` and `two_stage` are named as those that the paper compares; how they work inside
is our reading, and that `two_stage` begins with retrieval is our choice.
"""

MERGE = """\
## The merge

`merge` is a recipe ([recipe.md](recipe.md)) without the members, which are filled in with their
weights: the number of their rows, 1 with `weights: equal`, or their own `weight`. The checkpoints
of a run share its weight. `base_model` is the plan's `model`, unless the recipe says otherwise.

```yaml
model: ./bert-base
data:
  old: {path: old.jsonl, kind: retrieval}
  new: {path: new.jsonl, kind: retrieval}
members:
  - {name: update, ratio: {old: 40, new: 100}, draw: core}
weights: equal
merge:
  merge_method: multislerp
  models:                              # merged beside the members
    - model: ./in-service
```
"""


def markdown() -> str:
    """docs/training.md."""
    head = ("key", "value", "meaning")

    def section(title: str, entry: type[BaseModel]) -> list[str]:
        return [f"{title}\n", *table(head, keys(entry))]

    shared = list(keys(Settings))
    parts = [
        INTRODUCTION,
        *table(head, keys(PlanFile)),
        DATA,
        *table(("kind", "rows", "loss", "negatives"), _kinds()),
        ROWS,
        *table(head, keys(Settings)),
        "A data set, by its name under `data`, has these as well:\n",
        *table(head, (row for row in keys(DatasetEntry) if row not in shared)),
        *section("A `prompt`:", PromptEntry),
        *section("A `loss`:", LossEntry),
        MINING,
        *section("What `mine` says:", MineEntry),
        BAGS,
        *section("Each entry of `members`:", MemberEntry),
        *section("A `dirichlet`:", DirichletEntry),
        SCHEDULES,
        *table(("schedule", "order"), _orders()),
        SCHEDULE_NOTES,
        *table(head, keys(OrderEntry)),
        "## Training\n",
        *section("What `training` says:", TrainingEntry),
        *section("What `lora` says:", LoraEntry),
        *section("What `early_stop` says:", EarlyStopEntry),
        DEV,
        MERGE,
        RUNNING,
        *table(("file", "what it is"), FILES),
        RESULTS,
        UPDATES,
    ]
    return "\n".join(parts).rstrip() + "\n"


def _kinds() -> list[tuple[str, ...]]:
    return [
        (
            f"`{kind}`",
            takes,
            f"`{DEFAULTS[kind].name}`",
            "none"
            if kind == "sts"
            else "its own"
            if kind in OWN_NEGATIVES
            else "its own, and the texts of the rest of the batch",
        )
        for kind, takes in TAKES.items()
    ]


def _orders() -> list[tuple[str, ...]]:
    told = {name: " ".join((order.__doc__ or "").split()) for name, order in ORDERS.items()}
    return [(f"`{name}`", text) for name, text in told.items()]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
