"""Results belong to a model and to data: never to others, and always to these."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Family
from helpers import listed, write_recipe
from safetensors.numpy import load_file, save_file
from tiny_models import build_minilm, shard, to_pickle

import mergekit_embed
from mergekit_embed import loading
from mergekit_embed.checkpoint import open_checkpoint
from mergekit_embed.engine import Plan
from mergekit_embed.errors import NonFiniteError, OutputError, UsageError
from mergekit_embed.evaluate.compare import Comparison
from mergekit_embed.evaluate.encoder import Settings
from mergekit_embed.evaluate.identity import folder_revision, plan_revision
from mergekit_embed.evaluate.models import open_models
from mergekit_embed.evaluate.progress import Silent
from mergekit_embed.evaluate.run import Evaluating
from mergekit_embed.evaluate.tasks import Task, TaskError, local_task, open_tasks
from mergekit_embed.loading import planned
from mergekit_embed.task_folder import read_task

from .conftest import write_task


class Watching(Silent):
    """Remembers what was run."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.texts = 0
        self.expected = self.spared_cost = 0.0
        self.spared_units = 0
        self.costs: list[float] = []

    def start(self, cost: float, units: int, cached: int) -> None:
        self.expected = cost

    def spared(self, cost: float, units: int) -> None:
        self.spared_cost += cost
        self.spared_units += units

    def began(self, label: str, task: str, cost: float, texts: int | None) -> None:
        self.costs.append(cost)

    def finished(self, label: str, task: str, score: float) -> None:
        self.ran.append((label, task))

    def embedded(self, texts: int) -> None:
        self.texts += texts

    def note(self, text: str) -> None:
        self.notes.append(text)


def evaluated(
    models: Sequence[Path | str], tasks: Sequence[Path | str], results: Path, **options: Any
) -> tuple[Comparison, Watching]:
    watching = Watching()
    opened, named = open_models([*map(str, models)]), open_tasks([*map(str, tasks)])
    evaluating = Evaluating(
        opened, named, results=results, device="cpu", progress=watching, **options
    )
    return evaluating.run(), watching


@pytest.fixture
def quick(task_folders: Path) -> Path:
    """The task that takes least."""
    return task_folders / "similarity"


def revision(folder: Path) -> str:
    return folder_revision(open_checkpoint(folder))


# --- what a model is ------------------------------------------------------------------------------


def test_one_weight_makes_another_model(family: Family, tmp_path: Path, quick: Path) -> None:
    recipe = {"merge_method": "linear", "models": listed(*family.members)}
    one = mergekit_embed.merge(recipe, tmp_path / "one" / "merged").path
    other = tmp_path / "other" / "merged"
    shutil.copytree(one, other)
    first, ran = evaluated([one], [quick], tmp_path / "results")
    assert ran.ran == [("merged", "similarity")]
    again, ran = evaluated([other], [quick], tmp_path / "results")
    assert ran.ran == []
    assert again.rows[0].scores == first.rows[0].scores
    file = other / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 0x40  # one weight; the manifest, the file's size and its name are as they were
    file.write_bytes(raw)
    changed, ran = evaluated([other], [quick], tmp_path / "results")
    assert ran.ran == [("merged", "similarity")]
    assert changed.rows[0].revision != first.rows[0].revision


def test_two_models_of_one_name_never_share(family: Family, tmp_path: Path, quick: Path) -> None:
    models = []
    for i, member in enumerate(family.members[:2]):
        models.append(shutil.copytree(member, tmp_path / str(i) / "model"))
    found, ran = evaluated(models, [quick], tmp_path / "results")
    assert len(ran.ran) == 2
    assert [row.model for row in found.rows] == [str(model) for model in models]
    assert found.rows[0].scores != found.rows[1].scores


def test_the_same_weights_of_another_name_share_within_a_run(
    family: Family, tmp_path: Path, quick: Path
) -> None:
    copied = shutil.copytree(family.base, tmp_path / "copied")
    found, ran = evaluated([family.base, copied], [quick], tmp_path / "results")
    assert ran.ran == [("base", "similarity")]
    assert found.rows[0].scores == found.rows[1].scores


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("README.md", False),
        ("merge_manifest.json", False),
        ("notes.yaml", False),
        ("1_Pooling/config.json", True),
        ("tokenizer.json", True),
        ("config_sentence_transformers.json", True),
        ("modules.json", True),
        ("config.json", True),
    ],
)
def test_what_changes_embeddings_makes_another_model(
    file: str, changes: bool, own_family: Family
) -> None:
    before, path = revision(own_family.base), own_family.base / file
    path.write_text(path.read_text() + "\n" if path.exists() else "said")
    assert (revision(own_family.base) != before) == changes


def test_shards_make_no_other_model(tmp_path: Path) -> None:
    one, other = (build_minilm(tmp_path / name, 0) for name in ("one", "other"))
    assert revision(shard(other, 20_000)) == revision(one)


def test_a_pickled_model_is_told_by_its_weights(tmp_path: Path) -> None:
    one, other = (to_pickle(build_minilm(tmp_path / str(seed), seed)) for seed in (0, 1))
    again = to_pickle(build_minilm(tmp_path / "again", 0))
    assert revision(one) == revision(again) != revision(other)


def test_names_of_tensors_that_are_swapped_make_another_model(own_family: Family) -> None:
    before = revision(own_family.base)
    file = own_family.base / "model.safetensors"
    tensors = load_file(file)
    one, other = (f"encoder.layer.{i}.output.dense.weight" for i in (0, 1))
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, file, {"format": "pt"})
    assert revision(own_family.base) != before


@pytest.mark.parametrize("more", [{}, {"dtype": "bfloat16"}, {"post": [{"temp_scale": 1.1}]}])
def test_a_recipe_is_the_model_that_it_would_write(
    more: dict[str, Any], family: Family, tmp_path: Path
) -> None:
    recipe = {"merge_method": "linear", "models": listed(*family.members), **more}
    merged = mergekit_embed.merge(recipe, tmp_path / "merged").path
    assert plan_revision(planned(recipe), "cpu") == revision(merged)


def test_a_recipe_and_what_it_writes_share_results(
    family: Family, tmp_path: Path, quick: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "soup.yaml", {"merge_method": "linear", "models": listed(*family.members)}
    )
    found, ran = evaluated([recipe], [quick], tmp_path / "results")
    assert ran.ran == [("soup", "similarity")]
    merged = mergekit_embed.merge(recipe, tmp_path / "merged").path
    again, ran = evaluated([merged], [quick], tmp_path / "results")
    assert ran.ran == []
    assert again.rows[0].scores == found.rows[0].scores
    other, _ = evaluated([merged], [quick], tmp_path / "elsewhere")
    assert other.rows[0].scores == found.rows[0].scores


def test_a_sweep_is_all_its_models(family: Family, tmp_path: Path) -> None:
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(family.base),
        "models": listed(*family.members),
        "sweep": {"lambda": [0.5, 1.0]},
    }
    opened = open_models([f"tried={write_recipe(tmp_path / 'grid.yaml', recipe)}"])
    assert len({model.revision("cpu") for model in opened}) == 2
    assert [model.name.partition("/")[0] for model in opened] == ["tried", "tried"]
    assert opened[0].parents == (*map(str, family.members), str(family.base))


def test_a_model_with_an_adapter_is_the_merge_of_both(
    family: Family, tmp_path: Path, quick: Path
) -> None:
    from lora import adapt

    adapt(family.base, tmp_path / "adapter", 1)
    both = f"{family.base}+{tmp_path / 'adapter'}"
    found, ran = evaluated([family.base, both], [quick], tmp_path / "results")
    assert len(ran.ran) == 2
    recipe = {"merge_method": "passthrough", "models": listed(both)}
    merged = mergekit_embed.merge(recipe, tmp_path / "merged").path
    again, ran = evaluated([merged], [quick], tmp_path / "results")
    assert ran.ran == []
    assert again.rows[0].scores == found.rows[1].scores != found.rows[0].scores


def test_a_merge_that_gives_no_numbers_is_an_error(own_family: Family, quick: Path) -> None:
    file = own_family.members[0] / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layer.0.output.dense.weight"][0, 0] = np.nan
    save_file(tensors, file, {"format": "pt"})
    recipe = {"merge_method": "linear", "models": listed(*own_family.members)}
    with pytest.raises(NonFiniteError):
        plan_revision(planned(recipe), "cpu")


def test_two_models_with_nothing_to_tell_them_apart_are_refused(family: Family) -> None:
    base = str(family.base)
    with pytest.raises(UsageError, match="two models are called"):
        open_models([base, base])
    assert [model.name for model in open_models([base, f"again={base}"])] == ["base", "again"]


# --- what a task is -------------------------------------------------------------------------------


def test_a_changed_task_is_measured_again(family: Family, tmp_path: Path, quick: Path) -> None:
    task = tmp_path / "similarity"
    shutil.copytree(quick, task)
    first, _ = evaluated([family.base], [task], tmp_path / "results")
    rows = (task / "pairs.jsonl").read_text().splitlines(keepends=True)
    (task / "pairs.jsonl").write_text("".join(rows[:20]))
    changed, ran = evaluated([family.base], [task], tmp_path / "results")
    assert len(ran.ran) == 1
    assert changed.rows[0].scores != first.rows[0].scores
    (task / "pairs.jsonl").write_text("".join(rows))
    again, ran = evaluated([family.base], [task], tmp_path / "results")
    assert ran.ran == []  # the results of the first are still there
    assert again.rows[0].scores == first.rows[0].scores


def test_a_prompt_of_a_task_is_a_part_of_it(family: Family, tmp_path: Path, quick: Path) -> None:
    task = shutil.copytree(quick, tmp_path / "similarity")
    first, _ = evaluated([family.base], [task], tmp_path / "results")
    write_task(task, {"prompt": "the song of the "})
    changed, ran = evaluated([family.base], [task], tmp_path / "results")
    assert len(ran.ran) == 1
    assert changed.rows[0].scores != first.rows[0].scores
    write_task(task, {"group": "in-domain"})
    _, ran = evaluated([family.base], [task], tmp_path / "results")
    assert ran.ran == []


# --- what a recipe costs --------------------------------------------------------------------------


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The recipes that were merged, in order."""
    found: list[str] = []
    run = loading.run

    def counted(plans: Sequence[Plan], *others: Any) -> Any:
        found.extend(plan.recipe.name for plan in plans)
        return run(plans, *others)

    monkeypatch.setattr(loading, "run", counted)
    return found


def test_a_recipe_is_merged_once_however_much_is_measured(
    family: Family, tmp_path: Path, quick: Path, task_folders: Path, merges: list[str]
) -> None:
    recipe = tmp_path / "soup.yaml"
    write_recipe(recipe, {"merge_method": "linear", "models": listed(*family.members)})
    tasks = [quick, task_folders / "classes"]
    seen: list[tuple[str, int]] = []
    found, ran = evaluated(
        [family.base, recipe],
        tasks,
        tmp_path / "results",
        dimensions=(16, 8),
        opened=lambda model, opened: seen.append((model.name, opened.get_embedding_dimension())),
    )
    assert merges == ["soup"]
    assert len(ran.ran) == 8 and ran.spared_units == 0
    assert [name for name, _ in seen] == ["base", "soup"]
    folder = mergekit_embed.merge(recipe, tmp_path / "merged").path
    merges.clear()
    again, ran = evaluated([folder, recipe], tasks, tmp_path / "results", dimensions=(16, 8))
    assert ran.ran == [] and merges == ["soup"]
    assert ran.spared_units == 4, "what only the merge could tell"
    assert again.rows[0].scores == again.rows[2].scores == found.rows[2].scores


def test_costs_that_are_spared_are_those_that_were_counted(
    family: Family, tmp_path: Path, quick: Path, task_folders: Path
) -> None:
    recipe = tmp_path / "soup.yaml"
    write_recipe(recipe, {"merge_method": "linear", "models": listed(*family.members)})
    tasks = [quick, task_folders / "classes"]
    evaluated([recipe], tasks[:1], tmp_path / "results", dimensions=(16, 8))
    _, ran = evaluated([recipe], tasks, tmp_path / "results", dimensions=(16, 8))
    assert len(ran.ran) == 2
    assert ran.expected - ran.spared_cost == pytest.approx(sum(ran.costs))


# --- how it is measured ---------------------------------------------------------------------------


def test_settings_have_results_of_their_own(family: Family, tmp_path: Path, quick: Path) -> None:
    plain, _ = evaluated([family.base], [quick], tmp_path / "results")
    others = (Settings(prompts={"STS": "one "}), Settings(dtype="bfloat16"), Settings(max_length=4))
    for settings in others:
        found, ran = evaluated([family.base], [quick], tmp_path / "results", settings=settings)
        assert len(ran.ran) == 1
        assert found.rows[0].scores != plain.rows[0].scores
        _, ran = evaluated([family.base], [quick], tmp_path / "results", settings=settings)
        assert ran.ran == []


def test_prompts_are_put_before_texts(family: Family, tmp_path: Path, task_folders: Path) -> None:
    source = task_folders / "retrieval"
    given = Settings(prompts={"query": "ask ", "document": "tell "})
    asked, _ = evaluated([family.base], [source], tmp_path / "results", settings=given)
    spelled = shutil.copytree(source, tmp_path / "retrieval")
    for file, prompt in (("queries", "ask "), ("corpus", "tell ")):
        rows = [json.loads(line) for line in (source / f"{file}.jsonl").read_text().splitlines()]
        write_task(spelled, **{file: [{**row, "text": prompt + row["text"]} for row in rows]})
    written, _ = evaluated([family.base], [spelled], tmp_path / "results")
    told = write_task(
        shutil.copytree(source, tmp_path / "told" / "retrieval"),
        {"prompt": {"query": "ask ", "document": "tell "}},
    )
    by_task, _ = evaluated([family.base], [told], tmp_path / "results")
    plain, _ = evaluated([family.base], [source], tmp_path / "results")
    assert asked.rows[0].scores == written.rows[0].scores == by_task.rows[0].scores
    assert asked.rows[0].scores != plain.rows[0].scores


def test_a_models_own_prompts_are_used(tmp_path: Path, task_folders: Path) -> None:
    prompts = {"query": "ask ", "document": "tell "}
    own = build_minilm(tmp_path / "own", 0, prompts=prompts)
    plain = build_minilm(tmp_path / "plain", 0)
    task = task_folders / "retrieval"
    found, _ = evaluated([own, plain], [task], tmp_path / "results")
    asked, _ = evaluated([plain], [task], tmp_path / "results", settings=Settings(prompts=prompts))
    silent, _ = evaluated(
        [own], [task], tmp_path / "results", settings=Settings(prompts=dict.fromkeys(prompts, ""))
    )
    assert found.rows[0].scores == asked.rows[0].scores
    assert found.rows[1].scores == silent.rows[0].scores != found.rows[0].scores


def test_dimensions_are_the_first_ones_and_embed_once(
    family: Family, tmp_path: Path, task_folders: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    from . import reference

    folder = task_folders / "similarity"
    found, ran = evaluated([family.base], [folder], tmp_path / "results", dimensions=(16, 8))
    assert [row.label for row in found.rows] == ["base:16", "base:8"]
    assert ran.texts == 60
    cut = SentenceTransformer(str(family.base), device="cpu", truncate_dim=8)
    wanted = 100 * reference.spearman(cut, folder)
    assert found.rows[1].scores["similarity"] == pytest.approx(wanted, abs=1e-2)
    with pytest.raises(UsageError, match="base has 16 dimensions, and no 64 to keep"):
        evaluated([family.base], [folder], tmp_path / "results", dimensions=(64,))


def test_a_task_of_several_has_their_mean_and_keeps_their_results(
    family: Family, tmp_path: Path, task_folders: Path
) -> None:
    from mteb.abstasks.aggregate_task_metadata import AggregateTaskMetadata
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    inner = [local_task(read_task(task_folders / name)) for name in ("retrieval", "reranking")]
    inner = [replace(one, folder=None) for one in inner]

    class Both(AbsTaskAggregate):
        metadata = AggregateTaskMetadata(
            name="Both",
            description="both",
            tasks=[one.prototype for one in inner],
            main_score="ndcg_at_10",
            type="Retrieval",
            eval_splits=["dev"],
        )

    about = Both.metadata
    facts = replace(inner[0].facts, name="Both", revision=about.revision, metric="ndcg_at_10")
    tasks, watching = [Task(facts, Both())], Watching()
    models = open_models([str(family.base)])
    options = {"results": tmp_path / "results", "device": "cpu", "progress": watching}
    found = Evaluating(models, tasks, **options).run()
    files = {file.name for file in (tmp_path / "results").rglob("*.json")}
    assert files == {"Both.json", "retrieval.json", "reranking.json", "model_meta.json"}
    apart = evaluated([family.base], [task_folders / "retrieval"], tmp_path / "apart")[0]
    kept = json.loads(next((tmp_path / "results").rglob("reranking.json")).read_text())
    other = 100 * kept["scores"]["dev"][0]["main_score"]
    wanted = (apart.rows[0].scores["retrieval"] + other) / 2
    assert found.rows[0].scores["Both"] == pytest.approx(wanted, abs=1e-3)
    assert Evaluating(models, tasks, **options).survey()[0].result is not None
    assert watching.ran == [("base", "Both")]


# --- files ----------------------------------------------------------------------------------------


def test_mteb_reads_the_results(family: Family, tmp_path: Path, quick: Path) -> None:
    import mteb

    found, _ = evaluated([family.base], [quick], tmp_path / "results")
    (model,) = mteb.ResultCache(tmp_path / "results").load_results().model_results
    assert (model.model_name, model.model_revision) == ("local/base", found.rows[0].revision)
    (result,) = model.task_results
    assert 100 * result.get_score() == pytest.approx(found.rows[0].scores["similarity"], abs=1e-3)
    assert not list((tmp_path / "results").glob(".partial-*"))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"task_name": "similarity"}'])
def test_a_result_that_cannot_be_read_is_computed_again(
    damage: str, family: Family, tmp_path: Path, quick: Path
) -> None:
    first, _ = evaluated([family.base], [quick], tmp_path / "results")
    (file,) = (tmp_path / "results").rglob("similarity@*.json")
    file.write_text(damage)
    again, ran = evaluated([family.base], [quick], tmp_path / "results")
    assert len(ran.ran) == 1
    assert again.rows[0].scores == first.rows[0].scores


def test_samples_that_were_changed_are_not_believed(
    family: Family, tmp_path: Path, quick: Path
) -> None:
    models = [family.base, family.members[0]]
    found, _ = evaluated(models, [quick], tmp_path / "results")
    assert found.lead(found.rows[1]).over == "texts"
    one, other = (tmp_path / "results").rglob("similarity@*.npz")
    shutil.copyfile(one, other)
    again, _ = evaluated(models, [quick], tmp_path / "results")
    assert again.lead(again.rows[1]).over is None


def test_results_that_cannot_be_written_are_told(
    family: Family, tmp_path: Path, quick: Path
) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(OutputError, match="--results"):
        evaluated([family.base], [quick], tmp_path / "results")


def test_data_of_the_hub_that_is_not_here_is_told_and_the_rest_stays(
    family: Family, tmp_path: Path, quick: Path
) -> None:
    with pytest.raises(TaskError, match="HF_HUB_OFFLINE is set") as error:
        evaluated([family.base], [quick, "STSBenchmark"], tmp_path / "results")
    assert error.value.__notes__ == ["1 of 2 results are there; the same command continues"]
    _, ran = evaluated([family.base], [quick], tmp_path / "results")
    assert ran.ran == []


def test_an_interrupted_run_says_what_it_keeps(family: Family, tmp_path: Path, quick: Path) -> None:
    class Impatient(Watching):
        def finished(self, label: str, task: str, score: float) -> None:
            raise KeyboardInterrupt

    models = open_models([str(family.base), str(family.members[0])])
    tasks, results = open_tasks([str(quick)]), tmp_path / "results"
    options = {"results": results, "device": "cpu", "progress": Impatient()}
    with pytest.raises(KeyboardInterrupt) as interrupt:
        Evaluating(models, tasks, **options).run()
    assert interrupt.value.__notes__ == ["1 of 2 results are there; the same command continues"]
    assert not list(results.glob(".partial-*"))


def test_a_score_that_is_no_number_counts_as_nothing(
    own_family: Family, tmp_path: Path, quick: Path
) -> None:
    file = own_family.base / "2_Dense" / "model.safetensors"
    tensors = load_file(file)
    save_file({name: np.zeros_like(one) for name, one in tensors.items()}, file)
    found, ran = evaluated([own_family.base], [quick], tmp_path / "results")
    assert found.rows[0].scores == {"similarity": 0.0}
    assert ran.notes == ["base has no score on similarity (all texts alike?): 0"]
