"""What docs/training.md says of running a plan."""

RUNNING = """\
## Running

```sh
boom-train plan.yaml -o out            # train every member, write the recipe
boom-train plan.yaml -o out --merge    # and merge them into out/merged
boom-train plan.yaml -o out --json     # one JSON object at the end, for scripts
```
"""

FILES = (
    (
        "`out/members/bag-20/`, ...",
        "a whole sentence-transformers folder with tokenizer, pooling, prompts and a model card; "
        "with `lora: {fold: false}` an adapter",
    ),
    (
        "`out/merge.yaml`",
        "the recipe of [the merge](#the-merge), with relative paths: `out` and the base may be "
        "moved together",
    ),
    (
        "`out/training.json`",
        "for every data set its digest; for every member its rows (how many, and a digest of "
        "which), seed, curve of the loss, evaluations, cost (steps, rows, tokens, seconds), the "
        "versions of all libraries",
    ),
    ("`out/.work/`", "checkpoints of members that are not finished"),
)
"""What a training leaves."""

RESULTS = """\
In Python it is `mergekit_embed.train.run.train("plan.yaml", "out", merge=True)`.

The training itself is done by the trainer of sentence-transformers; the order of batches is ours.
Weights are trained in float32, whatever is stored, and members are written so; set `out_dtype` in
`merge` for a smaller result. A member's folder is written beside its place and renamed when it is
whole. Its card has the settings and losses, but neither texts of the data nor paths.

Where a plan gives no prompt, queries get what the model's own `encode_query` puts in front of them,
documents what `encode_document` does, and texts that are all alike what `encode` does.

**Batches that do not fit.** The losses compare all rows of a batch, so the gradients of small
batches do not add up to those of a large one. Set `mini_batch_size` of a loss
([losses.md](losses.md)): so many texts are embedded at a time, and the gradients are those of the
whole batch. `gradient_checkpointing: true` and `lora` save memory as well.

**Which weights.** With `early_stop` the dev task is measured every so many steps, and at the end. A
member then has the weights that were best there, and is no longer trained when `patience`
evaluations in a row were not better. With `checkpoints` it is several models, of the weights after
so many percent of its steps, rounded to the nearest. With `ema: d` after n steps it has the mean
of the weights w_1, ..., w_n after each of them,

    sum over i of d^(n - i) w_i / sum over i of d^(n - i)

### Going on

A run that was killed goes on with the same command, from the last checkpoint: with the weights, the
optimizer, the learning rate, the random numbers of dropout, and the place in the order of batches.
It ends with the same weights as one that was left alone. There is a checkpoint every `save_every`
steps, or every 5 minutes, and only the last is kept. Ctrl-C makes one after the step that is
running; a second Ctrl-C ends at once.

A finished member is not trained again: add members to a plan, and only these are trained. It is
trained anew where something has changed that its weights depend on: the plan, a data set that it
has rows of, or the base. What is not finished begins anew also where torch, transformers,
sentence-transformers, accelerate, peft or this package have another version. `--restart` trains all
anew. Only one run at a time may write to a folder.

On a CPU the same plan, data, versions and number of threads give the same bytes. On GPUs they
differ by rounding, because the fast kernels add in no fixed order.

### Several devices

```sh
torchrun --nproc-per-node 4 --no-python boom-train plan.yaml -o out
accelerate launch --num-processes 4 --no_python boom-train plan.yaml -o out
```

Every global batch is cut into equal pieces, one for each process, so `batch_size` has to be a
multiple of their number. The losses compare across all pieces, and the result is that of one
process with the whole batch, up to rounding (and other numbers for dropout). A run may go on with
another number of processes.

```sh
boom-train plan.yaml -o out --executor ray --ray-address head:6379
```

trains the members side by side on the machines of a Ray cluster (`pip install
'mergekit_embed[ray]'`): each on one GPU, or on clusters without GPUs on all CPUs of a machine.
Base, data and `out` lie on storage that all machines see by the same paths, and all have the same
versions. A member whose machine dies goes on elsewhere, from its last checkpoint.
"""
