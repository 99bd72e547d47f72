"""Chapters of the reference of training plans that no table of keys can tell."""

from __future__ import annotations

from .update_data import RULE

MINING = """\
### Mining

`mine` finds hard negatives for every query, with any encoder, before training begins. The documents
are all positives of the data set, and the negatives that its rows bring. Not mined for a query are

- what answers it, in any of its rows; what its rows have as negatives already; its own text; and in
  data sets of kind `pair`, whose texts are alike both ways, what it answers;
- of the `top` nearest that are left, those whose cosine is not below `below` times the positive's:
  they may well be answers that nobody has marked. Of several positives the least alike counts. For
  a positive of a negative cosine the limit is as far below it.

Of the others the `keep` nearest are put after a row's own negatives. The search is exact. Cosines
are summed in float64 and rounded to float32, and of equal ones the text with the lower hash comes
first, so that neither the order of rows nor the size of blocks shows in what is found. 4096 texts
are in memory at once; their vectors lie in a file, which takes 4 bytes a number. Texts get the data
set's prompts, else the encoder's own.

What was found is kept in `~/.cache/mergekit_embed/mined` (or under `$XDG_CACHE_HOME`, or in
`$MERGEKIT_EMBED_CACHE/mined`), by the hash of rows, encoder, prompts, length and parameters;
nothing is mined twice. `--dry-run` mines nothing, and says where mining comes first.
`boom-train plan.yaml --mine` mines and stops: before a training in several processes, which wait
for the first one, and no longer than their connection allows. For `--executor ray`, let
`MERGEKIT_EMBED_CACHE` be a folder that all machines share.
"""

DEV = """\
`task` is a folder of JSON Lines, and its files say what is measured. More is better everywhere:

| files | lines | measure |
| --- | --- | --- |
| `queries.jsonl`, `corpus.jsonl`, `qrels.jsonl` | `id`, `text` (and `title`); `query-id`, \
`corpus-id`, `score` | nDCG@10 |
| `labelled.jsonl` | `text`, `label` | accuracy |
| `pairs.jsonl` | `sentence1`, `sentence2`, `score` | Spearman's rank correlation |
| `pairs.jsonl` | `sentence1`, `sentence2` | how many find their translation |

Vectors are compared by their cosine, and texts get the model's own prompts. Translations are looked
for both ways, and the mean counts. The accuracy is that of
logistic regressions, after MTEB's protocol: ten on 8 texts of each class, and the mean. As there is
one file, half of each class are learnt from and the others tested; which are which depends on their
contents alone.
"""

UPDATES = f"""\
## Updates

A trained model learns new data at a part of what training it again would cost (BOOM's incremental
learning): one member is trained from the same base, on the new data and the core, a random part of
the old, and merged into the model by Multi-SLERP with equal weights.

```sh
boom-train plan.yaml -o out --merge
boom-train update --model out/merged --new tickets.jsonl -o out-2 --merge
boom-train update --model out-2/merged --new chats.jsonl --new sts:similar.jsonl -o out-3 --merge
boom-train update --model out-3/merged --new more.jsonl --dry-run     # what it would cost
```

Beside a model that `boom-train` has made lie `plan.yaml` and `training.json`, and with them base,
data, settings and seed; for one that was moved away, name its plan with `--plan out/plan.yaml`. For
any other model say them with `--base`, `--history` (files, as those of `--new`) and `--plan`. A new
data set has the settings in which the known ones of its kind agree. Its kind may stand before the
file. {RULE}

The core is 40 percent of every data set that the model has learnt (`--history-ratio 0.4`). Which
rows these are follows from seed, name and contents of the data set (see above, by the name `core`),
so it is drawn once, and is the same in every later update; nothing has to be kept for that but the
data. What is new in one update is history in the next, with a core of its own. So the tenth update
is made as the first, and at any time the rows trained on are (new + 0.4 old) / (new + old) of those
of a full training. The paper draws the core of the data before the first update; that later data
joins it in the same proportion is our reading.

`training.json` names the update's parents under `update`: the model, with a hash of its files; new
data, history and core, with hashes of their rows; the cost; and under `before` all that was before.
A base with another hash than the model's own is refused, as deltas have to start at the same point.
"""
