"""Data sets: which rows there are, what is told of bad ones, and what becomes of good ones."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mergekit_embed.errors import DataError
from mergekit_embed.rows import Plain, Ranked, Scored
from mergekit_embed.train.bags import Member, members
from mergekit_embed.train.data import Dataset, open_dataset, open_datasets
from mergekit_embed.train.examples import Examples, columns_of, label_of, prompts_of

from .plans import plan_of, rows_of, write_rows


def opened(path: Path, kind: str = "retrieval", bad_rows: float = 0, **entry: Any) -> Dataset:
    plan = plan_of({"a": {"path": str(path), "kind": kind, **entry}})
    return open_dataset(plan.datasets["a"], (Path(),), bad_rows)


def file(folder: Path, *rows: Any) -> Path:
    return write_rows(folder / "a.jsonl", rows)


# --- layouts ----------------------------------------------------------------------------------

TRIPLET = {"anchor": "q", "positive": "p", "negative": "n"}


@pytest.mark.parametrize(
    ("kind", "content", "row"),
    [
        ("retrieval", {"query": "q", "pos": ["p", "r"]}, Ranked("q", ("p", "r"), ())),
        ("retrieval", {"query": "q", "pos": "p", "neg": None}, Ranked("q", ("p",), ())),
        ("retrieval", {"query": "q", "pos": ["p"], "neg": ["n"]}, Ranked("q", ("p",), ("n",))),
        ("retrieval", TRIPLET, Ranked("q", ("p",), ("n",))),
        ("retrieval", {"anchor": "q", "positive": "p"}, Ranked("q", ("p",), ())),
        (
            "retrieval",
            {"anchor": "q", "positive": "p", "negative_10": "z", "negative_2": "b"},
            Ranked("q", ("p",), ("b", "z")),
        ),
        ("pair", {"sentence1": "l", "sentence2": "r"}, Ranked("l", ("r",), ())),
        ("pair", TRIPLET, Ranked("q", ("p",), ("n",))),
        ("classification", TRIPLET, Ranked("q", ("p",), ("n",))),
        ("sts", {"sentence1": "l", "sentence2": "r", "score": 3}, Scored("l", "r", 3.0)),
    ],
)
def test_a_row_is_read_as_its_kind_has_it(
    kind: str, content: Any, row: object, tmp_path: Path
) -> None:
    assert opened(file(tmp_path, content), kind)[0] == row


def test_classes_are_texts_or_numbers(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(["b", 3, "a", "3"])]
    dataset = opened(file(tmp_path, *rows), "clustering")
    assert [dataset[i] for i in range(2)] == [Plain("t0", "b"), Plain("t1", "3")]
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize(
    ("kind", "content", "fault"),
    [
        ("retrieval", {"text": "t"}, "is no row of kind retrieval, which has query, pos, neg"),
        ("retrieval", {"query": "q", "pos": []}, "`pos` is empty"),
        ("retrieval", {"query": " ", "pos": ["p"]}, "`query` must be a text that is not empty"),
        ("retrieval", {"query": "q", "pos": ["p", 3]}, "`pos` must hold texts"),
        ("retrieval", {"anchor": "q", "positive": ["", "p"]}, "`positive` must hold texts"),
        ("retrieval", {"anchor": "q", "negative": "n"}, "`positive` must be a list of texts"),
        ("retrieval", {"sentence1": "l", "sentence2": "r", "score": 1}, "is no row of kind"),
        ("pair", {"sentence1": "l", "sentence2": "r", "score": 1}, "is no row of kind pair"),
        ("pair", {"sentence1": "l"}, "`sentence2` must be a text"),
        ("sts", {"sentence1": "l", "sentence2": "r"}, "`score` must be a finite number"),
        ("sts", {"sentence1": "l", "sentence2": "r", "score": 10**400}, "must be a finite"),
        ("sts", {"sentence1": "l", "sentence2": "r", "score": True}, "must be a finite number"),
        ("sts", {"query": "q", "pos": ["p"]}, "is no row of kind sts"),
        ("classification", {"text": "t"}, "`label` must be the name or the number of a class"),
        ("classification", {"text": "t", "label": 1.5}, "`label` must be the name or the number"),
        ("classification", {"text": "t", "label": True}, "`label` must be the name or the number"),
        ("classification", {"query": "q", "pos": ["p"]}, "has no negatives, and classification"),
        ("retrieval", {"id": 3}, "has the keys id; a row is"),
        ("retrieval", [1], "is not an object"),
    ],
)
def test_what_is_wrong_with_a_row_is_told(
    kind: str, content: Any, fault: str, tmp_path: Path
) -> None:
    path = file(tmp_path, content)
    with pytest.raises(DataError) as caught:
        opened(path, kind)
    first, last = caught.value.problems
    assert first.where == f"{path}:1"
    assert fault in first.message
    assert last.message == "a: 1 of 1 rows are bad; `bad_rows: 0` allows 0 percent"


def test_rows_of_a_file_have_one_layout(tmp_path: Path) -> None:
    labelled = {"text": "t", "label": "x"}
    dataset = opened(file(tmp_path, TRIPLET, labelled, TRIPLET), "clustering", bad_rows=40)
    assert len(dataset) == 2
    assert [str(p) for p in dataset.bad] == [
        f"{tmp_path}/a.jsonl:2: has other keys than the first row"
    ]


def test_columns_may_be_called_otherwise(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "p", "query": "7"}]
    columns = {"query": "question", "pos": "answer"}
    assert opened(file(tmp_path, *rows), columns=columns)[0] == Ranked("q", ("p",), ())


# --- bad rows ---------------------------------------------------------------------------------


def test_bad_rows_are_left_out_up_to_a_limit(tmp_path: Path) -> None:
    good = [json.dumps(row) for row in rows_of("retrieval", 97)]
    lines = ["\ufeff" + good[0], "", "{not json", *good[1:50], "[]", "  ", *good[50:], "\udc80"]
    path = tmp_path / "a.jsonl"
    path.write_bytes("\r\n".join(lines).encode("utf-8", "surrogateescape"))
    dataset = opened(path, bad_rows=3)
    assert (len(dataset), dataset.bad_count) == (97, 3)
    assert [problem.where for problem in dataset.bad] == [f"{path}:{n}" for n in (3, 53, 102)]
    assert dataset[96] == Ranked("query 96", ("answer 96",), ())
    assert dataset.place(96) == f"{path}:101"
    with pytest.raises(DataError, match=r"a: 3 of 100 rows are bad; `bad_rows: 2.9` allows 2.9"):
        opened(path, bad_rows=2.9)


def test_twenty_bad_rows_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        opened(file(tmp_path, *[{}] * 30))
    assert len(caught.value.problems) == 21
    assert "30 of 30 rows are bad" in str(caught.value)


def test_every_data_set_that_is_wrong_is_told(tmp_path: Path) -> None:
    write_rows(tmp_path / "one.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": 1}])
    (tmp_path / "empty.jsonl").write_text("\n\n")
    data = {
        name: {"path": str(tmp_path / path), "kind": "classification"}
        for name, path in {
            "one": "one.jsonl",
            "none": "none.jsonl",
            "empty": "empty.jsonl",
            "folder": "",
        }.items()
    }
    with pytest.raises(DataError) as caught:
        open_datasets(plan_of(data))
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert 'one.jsonl: has no class but "1"' in lines[0]
    assert lines[1] == f"plan: data.none.path: there is no file {tmp_path}/none.jsonl"
    assert "empty.jsonl: holds no rows; one of kind classification has text, label" in lines[2]
    assert lines[3] == f"{tmp_path}: is a folder; name a file of rows"


@pytest.mark.parametrize("path", ["~nobody-here/a.jsonl", "a" * 300 + "/b.jsonl"])
def test_a_path_that_cannot_be_looked_up_is_told(path: str) -> None:
    with pytest.raises(DataError, match="cannot be looked up: "):
        opened(Path(path))


def test_a_data_set_of_the_hub_that_cannot_be_had_is_told() -> None:
    with pytest.raises(DataError, match="nobody/nothing@main: cannot be read: "):
        opened(Path("nobody/nothing@main"))


def test_a_file_that_changes_after_it_was_checked_is_told(tmp_path: Path) -> None:
    path = file(tmp_path, *rows_of("retrieval", 3))
    dataset = opened(path)
    path.write_bytes(path.read_bytes().replace(b'"pos"', b'"sop"'))
    with pytest.raises(DataError, match=r"a.jsonl:2: has changed since it was checked: `pos`"):
        dataset[1]


# --- formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["retrieval", "classification", "sts"])
def test_parquet_gives_the_same_data_set(kind: str, tmp_path: Path) -> None:
    rows = rows_of(kind, 40, negatives=2)
    rows.insert(7, dict.fromkeys(rows[0]))
    lines = opened(file(tmp_path, *rows), kind, bad_rows=5)
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    table = opened(path, kind, bad_rows=5)
    assert table.digest == lines.digest
    assert table.identities.tolist() == lines.identities.tolist()
    assert [table[i] for i in range(40)] == [lines[i] for i in range(40)]
    assert table.place(7) == f"{path}:9"
    assert [problem.where for problem in table.bad] == [f"{path}:8"]


def test_a_file_that_is_no_parquet_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read: "):
        opened(path)


def test_the_digest_is_of_the_rows_and_not_of_the_file(tmp_path: Path) -> None:
    rows = rows_of("retrieval", 5, negatives=1)
    digest = opened(file(tmp_path, *rows)).digest
    spaced = "\n\n".join(json.dumps({**row, "id": 3}, indent=None) for row in rows)
    (tmp_path / "b.jsonl").write_text(spaced)
    assert opened(tmp_path / "b.jsonl").digest == digest
    assert opened(file(tmp_path, *rows[::-1])).digest != digest
    rows[2]["neg"] = ["another"]
    assert opened(file(tmp_path, *rows)).digest != digest


def test_a_data_set_goes_to_another_process(tmp_path: Path) -> None:
    dataset = opened(file(tmp_path, *rows_of("retrieval", 5)))
    before = dataset[3]
    assert pickle.loads(pickle.dumps(dataset))[3] == before


# --- examples ---------------------------------------------------------------------------------


def trained(path: Path, kind: str = "retrieval", **entry: Any) -> tuple[Dataset, Member]:
    plan = plan_of({"a": {"path": str(path), "kind": kind, **entry}}, members=[60])
    datasets = open_datasets(plan)
    return datasets["a"], members(plan, datasets)[0]


def examples(dataset: Dataset, member: Member, epoch: int = 0) -> list[dict[str, Any]]:
    made = Examples(dataset, member, epoch)
    found = [dict(made[int(number)]) for number in member.rows["a"]]
    columns = [*columns_of(dataset), *([label] if (label := label_of(dataset)) else [])]
    assert all(list(example) == columns for example in found)
    return found


def test_rows_with_enough_texts_draw_among_them_anew_in_every_epoch(tmp_path: Path) -> None:
    rows = [
        {
            "query": f"q{i}",
            "pos": [f"p{i}-{j}" for j in range(3)],
            "neg": [f"n{j}" for j in range(9)],
        }
        for i in range(40)
    ]
    dataset, member = trained(file(tmp_path, *rows), positives=2, negatives=4)
    assert columns_of(dataset)[:4] == ("anchor", "positive_1", "positive_2", "negative_1")
    first, again, second = (examples(dataset, member, epoch) for epoch in (0, 0, 1))
    assert first == again
    assert first != second
    for example in first:
        assert {example["positive_1"][1:-2], example["positive_2"][1:-2]} == {example["anchor"][1:]}
        assert len(set(example.values())) == 7
    chosen = Counter(example[f"negative_{j}"] for example in first for j in range(1, 5))
    assert len(chosen) == 9


def test_missing_negatives_are_positives_of_other_rows_of_the_member(tmp_path: Path) -> None:
    rows = rows_of("retrieval", 50)
    rows[0]["neg"] = rows[1]["neg"] = ["wrong", "wronger", "wrongest"]
    dataset, member = trained(file(tmp_path, *rows), negatives=7)
    assert (dataset.negatives, dataset.short) == (3, 48)
    inside = {f"answer {number}" for number in member.rows["a"]}
    for number, example in zip(member.rows["a"], examples(dataset, member), strict=True):
        negatives = [example[f"negative_{j}"] for j in (1, 2, 3)]
        assert len(set(negatives)) == 3
        assert f"answer {number}" not in negatives
        if number > 1:
            assert inside.issuperset(negatives)


def test_own_negatives_are_repeated_and_not_filled_up(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "pos": [f"p{i}"], "neg": [f"a{i}", f"b{i}"]} for i in range(10)]
    rows.append({"query": "q", "pos": ["p"], "neg": [f"n{i}" for i in range(5)]})
    dataset, member = trained(file(tmp_path, *rows), "clustering", negatives=5)
    for number, example in zip(member.rows["a"], examples(dataset, member), strict=True):
        if number < 10:
            negatives = [example[f"negative_{j}"] for j in range(1, 6)]
            assert set(negatives) == {f"a{number}", f"b{number}"}


def test_a_data_set_without_negatives_is_trained_without(tmp_path: Path) -> None:
    dataset, member = trained(file(tmp_path, *rows_of("retrieval", 10)))
    assert columns_of(dataset) == ("anchor", "positive")
    assert label_of(dataset) is None
    assert len(examples(dataset, member)) == 6


def test_what_cannot_be_filled_up_is_told(tmp_path: Path) -> None:
    rows = [{"query": "q", "pos": ["same"], "neg": []} for _ in range(5)]
    rows += [{"query": "q", "pos": ["same"], "neg": ["n"]} for _ in range(5)]
    dataset, member = trained(file(tmp_path, *rows))
    with pytest.raises(DataError, match=r"a.jsonl:\d: has 0 negatives, and other rows of bag-60"):
        examples(dataset, member)


def test_classes_give_positives_and_negatives_out_of_the_member(tmp_path: Path) -> None:
    rows = [{"text": f"{i % 5}-{i}", "label": i % 5} for i in range(100)]
    dataset, member = trained(file(tmp_path, *rows), "classification", positives=2, negatives=3)
    inside = {rows[int(number)]["text"] for number in member.rows["a"]}
    seen = examples(dataset, member)
    assert len(seen) == 60
    for example in seen:
        texts = [example[column] for column in columns_of(dataset)]
        assert inside.issuperset(texts)
        assert len(set(texts)) == 6
        kinds = [text.partition("-")[0] for text in texts]
        assert kinds[:3] == [str(example["label"])] * 3
        assert kinds[0] not in kinds[3:]
    assert examples(dataset, member, 1) != seen


def test_a_class_of_one_row_is_like_itself(tmp_path: Path) -> None:
    rows = [{"text": "alone", "label": 1}, {"text": "a", "label": 2}, {"text": "b", "label": 2}]
    plan = plan_of(
        {"a": {"path": str(file(tmp_path, *rows)), "kind": "clustering", "negatives": 3}},
        members=[100],
    )
    datasets = open_datasets(plan)
    found = examples(datasets["a"], members(plan, datasets)[0])
    assert found[0]["positive"] == found[0]["anchor"] == "alone"
    assert {found[0][f"negative_{j}"] for j in (1, 2, 3)} == {"a", "b"}
    assert found[1]["positive"] == "b"
    assert {found[1][f"negative_{j}"] for j in (1, 2, 3)} == {"alone"}


def test_pairs_with_scores_stay_as_they_are(tmp_path: Path) -> None:
    dataset, member = trained(file(tmp_path, *rows_of("sts", 5)), "sts")
    number = int(member.rows["a"][0])
    assert examples(dataset, member)[0] == {
        "sentence1": f"left {number}",
        "sentence2": f"right {number}",
        "score": number % 6 / 5,
    }
    assert (columns_of(dataset), label_of(dataset)) == (("sentence1", "sentence2"), "score")


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("retrieval", {"anchor": "Q", "positive": "D", "negative": "D"}),
        ("pair", {"anchor": "Q", "positive": "Q", "negative": "Q"}),
        ("classification", {"anchor": "Q", "positive": "Q", "negative": "Q"}),
        ("sts", {"sentence1": "Q", "sentence2": "Q"}),
    ],
)
def test_texts_get_the_prompt_of_what_they_are(
    kind: str, wanted: dict[str, str], tmp_path: Path
) -> None:
    path = file(tmp_path, *rows_of(kind, 5, negatives=1))
    own = {} if kind == "sts" else {"negatives": 1}
    assert prompts_of(opened(path, kind, prompt={"query": "Q", "document": "D"}, **own)) == wanted
    assert prompts_of(opened(path, kind, **own)) == {}
    told = prompts_of(opened(path, kind, instruction="Find it", **own))
    assert told == {c: "Instruct: Find it\nQuery: " if p == "Q" else "" for c, p in wanted.items()}
