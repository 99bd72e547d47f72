"""The model card of a merge: what it says, that it runs, and whose words stay."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from helpers import WEIGHTS, boom_merge, listed, recipe, write_recipe
from huggingface_hub import EvalResult, ModelCard
from lora import BERT_LINEAR, adapt

import mergekit_embed
from mergekit_embed.engine.lineage.cards import card_of
from mergekit_embed.errors import CheckpointError, OutputError
from mergekit_embed.publish.card import check_card, update_card, write_card
from mergekit_embed.publish.card_data import licence_of

pytestmark = pytest.mark.usefixtures("among_models")

OUT = Path("out")
CARD = OUT / "README.md"


def result(task: str, value: float = 0.5) -> EvalResult:
    return EvalResult(
        task_type="Retrieval",
        dataset_type=f"mteb/{task.lower()}",
        dataset_name=task,
        metric_type="ndcg_at_10",
        metric_value=value,
    )


def described(name: str, metadata: str) -> None:
    """Give a model a card with such metadata."""
    Path(name, "README.md").write_text(f"---\n{metadata}\n---\n\n# {name}\n")


def carded(*members: str, **more: Any) -> ModelCard:
    """The card of a merge by the command."""
    shutil.rmtree(OUT, ignore_errors=True)
    ran = boom_merge(recipe(*members, **more), "-o", OUT)
    assert (ran.code, ran.err) == (0, "")
    return ModelCard.load(CARD)


def section(name: str) -> str:
    """What stands between the markers of a section."""
    found = re.search(
        rf"<!-- mergekit_embed: {name} -->\n(.*?)<!-- mergekit_embed: end of {name} -->",
        CARD.read_text(),
        re.DOTALL,
    )
    assert found is not None
    return found[1]


# --- what it says -------------------------------------------------------------------------


def test_the_metadata_are_those_of_a_merge() -> None:
    place = Path("hub/models--intfloat--e5-small/snapshots/abc123")
    shutil.copytree("m1", place)
    described(str(place), "license: mit\nlanguage: [en, no]\ndatasets: [mteb/sts, a/b]")
    described("m2", "license: mit\nlanguage: de\ndatasets: a/b")
    data = carded(str(place), "m2").data.to_dict()
    assert data == {
        "language": ["en", "no", "de"],
        "license": "mit",
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": [
            "sentence-transformers",
            "feature-extraction",
            "sentence-similarity",
            "merge",
            "mergekit_embed",
        ],
        "datasets": ["mteb/sts", "a/b"],
        "base_model": ["intfloat/e5-small"],
        "base_model_relation": "merge",
    }


def test_a_local_member_stands_for_what_it_was_merged_from() -> None:
    for name in ("one", "two"):
        shutil.copytree("m1", f"hub/models--org--{name}/snapshots/abc")
    places = [str(Path(f"hub/models--org--{name}/snapshots/abc")) for name in ("one", "two")]
    mergekit_embed.merge(recipe(*places), "first")
    assert carded("first", "m2", places[1]).data.base_model == ["org/one", "org/two"]
    assert "base_model" not in carded("m1", "m2").data.to_dict()


def test_the_usage_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    carded("m1", "m2")
    assert run_code("usage") == 3
    assert capsys.readouterr().out == "(2, 16)\n"
    assert "makes a vector of 16 numbers" in section("about")


def test_bare_transformers_and_adapters_have_a_usage_of_their_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("m1", "m2"):
        Path(name, "modules.json").unlink()
        shutil.rmtree(Path(name, "2_Dense"))
    data = carded("m1", "m2").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "feature-extraction")
    run_code("usage")
    assert capsys.readouterr().out == "torch.Size([1, 8, 32])\n"
    for number in (1, 2):
        adapt(Path("base"), Path(f"lora{number}"), seed=number, target_modules=BERT_LINEAR)
    models = listed("base+lora1", "base+lora2", weight=0.5)
    assert carded(models=models, adapter_output=True).data.library_name == "peft"
    run_code("usage")


def run_code(name: str) -> int:
    """Run the block of a section here, as a reader of the card would; how many lines it has."""
    found = re.search(r"```python\n(.*?)```", section(name), re.DOTALL)
    assert found is not None
    exec(compile(found[1], str(CARD), "exec"), {})
    return len(found[1].splitlines())


def test_the_mixture_shows_what_members_weigh() -> None:
    models = [*listed("m1", weight=3), *listed("m2", weight=1)]
    carded(models=models, base_model="base", merge_method="task_arithmetic")
    assert "| `m1` | 75.0 % | " + "\u2588" * 15 + " |" in section("mixture")
    assert "| `m2` | 25.0 % | " + "\u2588" * 5 + " |" in section("mixture")
    assert "Deltas start at `base`." in section("mixture")
    carded("m1", "m2", parameters={"weight": [0.2, 0.8]})
    assert "%" not in section("mixture")


def test_a_base_is_a_member_where_the_method_says_so() -> None:
    carded("m1", base_model="base", merge_method="slerp", parameters={"t": 0.5})
    assert "| `base` |\n| `m1` |" in section("mixture")
    assert "merged from 2 models" in section("about")
    carded("base", "m1", base_model="base")
    assert "| `base` | 50.0 % |" in section("mixture")
    carded("base", "m1", base_model="base", merge_method="task_arithmetic")
    assert "| `base` |" not in section("mixture")
    assert "merged from 1 model by" in section("about")


def test_the_recipe_of_the_card_is_that_of_the_merge() -> None:
    inner = {"merge_method": "slerp", "parameters": {"t": 0.3}, "models": listed("m2", "m3")}
    write_recipe(Path("inner.yaml"), inner)
    carded("m1", "inner.yaml", out_dtype="float16")
    assert "`slerp(m2, m3)`" in section("mixture")
    found = re.search(r"```yaml\n(.*?)```", section("recipe"), re.DOTALL)
    assert found is not None
    Path("shown.yaml").write_text(found[1])
    assert boom_merge("shown.yaml", "-o", "again").code == 0
    assert Path("again", WEIGHTS).read_bytes() == (OUT / WEIGHTS).read_bytes()


# --- licences -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("licences", "chosen", "told"),
    [
        (["mit", "mit"], "mit", ""),
        (["mit", "apache-2.0"], "apache-2.0", "apache-2.0 asks for the most"),
        (["cc0-1.0", "mit"], "mit", "mit asks for the most"),
        (["apache-2.0", "cc-by-nc-4.0", "mit"], "cc-by-nc-4.0", "cc-by-nc-4.0 asks for the most"),
        (["gpl-3.0", "cc-by-nc-4.0"], None, "cc-by-nc-4.0, gpl-3.0 may not go together"),
        (["mit", "gemma"], None, "gemma cannot be ordered"),
        (["gemma", "gemma"], "gemma", ""),
        (["mit", None], None, "not known of m1 (m0: mit)"),
        ([None, None], None, "No card of a model tells its licence"),
    ],
)
def test_the_most_restrictive_licence_counts_where_there_is_one(
    licences: list[str | None], chosen: str | None, told: str
) -> None:
    for turned in (licences, licences[::-1]):
        found = licence_of({f"m{place}": one for place, one in enumerate(turned)})
        assert found.name == chosen
        assert bool(found.warning) == bool(told)
    assert told in licence_of({f"m{place}": one for place, one in enumerate(licences)}).warning


def test_a_licence_that_the_hub_has_no_word_for_keeps_its_name() -> None:
    for name in ("m1", "m2"):
        described(name, "license: other\nlicense_name: our-licence")
    data = carded("m1", "m2").data
    assert (data.license, data.license_name) == ("other", "our-licence")
    assert licence_of({"a": "other: x", "b": "mit"}).name is None


def test_differing_licences_are_told_in_the_card_until_somebody_decides() -> None:
    described("m1", "license: mit")
    described("m2", "license: gemma")
    assert "license" not in carded("m1", "m2").data.to_dict()
    assert "**Licence.** The models' licences differ" in section("lineage")
    CARD.write_text(CARD.read_text().replace("---\n", "---\nlicense: gemma\n", 1))
    write_card(OUT)
    assert ModelCard.load(CARD).data.license == "gemma"
    assert "**Licence.**" not in CARD.read_text()


def test_a_member_without_a_card_is_under_the_licence_of_what_it_was_trained_from() -> None:
    described("base", "license: apache-2.0")
    shutil.copytree("m1", "run/members/m1")
    (Path("run/members/m1/README.md")).unlink(missing_ok=True)
    record = {
        "format": 1,
        "plan": "p",
        "model": {"name": "../base", "digest": "d"},
        "seed": 0,
        "schedule": "s",
        "training": {},
        "data": {},
        "members": {
            "m1": {
                "models": {"m1": {}},
                "rows": {},
                **dict.fromkeys(("steps", "examples", "tokens", "seconds"), 1),
            }
        },
    }
    Path("run/training.json").write_text(json.dumps(record))
    data = carded("run/members/m1", base_model="base", merge_method="task_arithmetic").data
    assert data.license == "apache-2.0"


@pytest.mark.parametrize(
    "text",
    [
        "---\n[unclosed\n---\n",
        "---\n- a list\n---\n",
        "no metadata",
        "---\nlicense: {a: 1}\nlanguage: [1, 2]\n---\n",
        "---\na: &a [x]\nb: &b [*a, *a]\n" + "c: [*b, *b]\n---\n",
        "---\n" + "[" * 2000 + "\n---\n",
        "---\nlicense: '<script>'\n---\n",
        "---\ndatasets: [/home/me/rows, a/b/c]\nlicense: ./LICENCE\n---\n",
        b"---\n\xff\xfe\n---\n".decode("latin-1"),
    ],
)
def test_a_member_s_broken_card_names_nothing_and_stops_nothing(text: str) -> None:
    for name in ("m1", "m2"):
        Path(name, "README.md").write_bytes(text.encode("latin-1"))
    data = carded("m1", "m2").data.to_dict()
    assert not data.keys() & {"license", "language", "datasets"}


def test_thousands_of_results_in_a_card_take_no_time() -> None:
    rows = "".join(
        f"  - task: {{type: Retrieval}}\n    metrics:\n    - value: {n}\n" for n in range(9000)
    )
    listed = "language:\n- en\n- de\nlicense: mit\r\ndatasets: [a/b,\n  c/d]\ntags: [x]"
    described("m1", f"model-index:\n- results:\n{rows}{listed}")
    began = time.process_time()
    found = card_of(Path("m1"))
    assert time.process_time() - began < 0.5
    assert found == {"license": "mit", "languages": ["en", "de"], "datasets": ["a/b", "c/d"]}


# --- results, and what people write -------------------------------------------------------


def test_results_are_in_the_table_and_the_metadata() -> None:
    carded("m1", "m2")
    update_card(OUT, [result("NFCorpus", 0.34567), result("SciFact", 0.7)])
    assert "| Retrieval | NFCorpus | ndcg_at_10 | 0.3457 |" in section("evaluation")
    told = ModelCard.load(CARD).data.eval_results
    assert told is not None
    assert [(one.dataset_name, one.metric_value) for one in told] == [
        ("NFCorpus", 0.34567),
        ("SciFact", 0.7),
    ]
    check_card(OUT)


def test_results_may_be_put_in_again_and_again() -> None:
    carded("m1", "m2")
    before = CARD.read_text()
    update_card(OUT, [result("NFCorpus")])
    first = CARD.read_text()
    assert first != before
    for again in (update_card, write_card):
        again(OUT, [result("NFCorpus")])
        assert CARD.read_text() == first
    write_card(OUT)
    assert CARD.read_text() == first
    update_card(OUT, [result("SciFact")])
    assert "NFCorpus" not in CARD.read_text()
    update_card(OUT, [result("NFCorpus")])
    assert CARD.read_text() == first
    update_card(OUT, [])
    assert CARD.read_text() == before


def test_what_people_write_stays() -> None:
    carded("m1", "m2")
    text = CARD.read_text().replace("# out\n", "# Our model\n\nBy us.\n")
    text = text.replace("---\n", "---\nthumbnail: pic.png\nlicense: mit\n", 1)
    text = text.replace("- merge\n", "- merge\n- ours\n") + "\n## Thanks\n\nTo \\1 all.\n"
    CARD.write_text(text)
    update_card(OUT, [result("NFCorpus")])
    write_card(OUT, name="org/ours")
    found = ModelCard.load(CARD)
    assert "# Our model\n\nBy us.\n" in found.text
    assert found.text.endswith("\n## Thanks\n\nTo \\1 all.\n")
    assert (found.data.license, found.data["thumbnail"]) == ("mit", "pic.png")
    assert found.data.tags is not None
    assert found.data.tags.count("ours") == 1
    assert 'SentenceTransformer("org/ours")' in section("usage")
    assert "NFCorpus" in section("evaluation")


def test_a_card_of_other_making_gets_its_results_at_the_end() -> None:
    described("m1", "license: mit")
    update_card("m1", [result("NFCorpus")])
    text = Path("m1/README.md").read_text()
    assert text.startswith("---\nlicense: mit\n")
    assert text.index("# m1") < text.index("## Evaluation")
    assert "## Lineage" not in text
    with pytest.raises(CheckpointError, match=r"holds no merge_lineage\.json"):
        Path("m2/README.md").unlink(missing_ok=True)
        update_card("m2", [result("NFCorpus")])


def test_a_new_merge_in_the_same_place_begins_its_card_anew() -> None:
    carded("m1", "m2")
    CARD.write_text(CARD.read_text() + "old words")
    assert boom_merge(recipe("m1", "m3"), "-o", OUT, "--overwrite").code == 0
    assert "old words" not in CARD.read_text()
    assert "`m3`" in CARD.read_text()


@pytest.mark.parametrize(
    "metadata", ["[broken", "- a list", "model-index: 3", "model-index:\n- results: 1"]
)
def test_a_card_that_the_hub_would_not_take_is_refused_and_left(metadata: str) -> None:
    carded("m1", "m2")
    CARD.write_text(f"---\n{metadata}\n---\n# x\n")
    before = CARD.read_text()
    for use in (check_card, write_card, lambda folder: update_card(folder, [result("a")])):
        with pytest.raises(CheckpointError, match=r"README\.md: has metadata that the Hub"):
            use(OUT)
    assert CARD.read_text() == before
    CARD.unlink()
    with pytest.raises(CheckpointError, match="is not there"):
        check_card(OUT)


def test_names_in_tables_and_code_cannot_leave_them() -> None:
    shutil.copytree("m1", "a|b`c")
    carded("a|b`c", "m2")
    row = next(line for line in section("mixture").splitlines() if "a/bc" in line)
    assert row.count("|") == 4


def test_a_card_is_written_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    carded("m1", "m2")
    before = CARD.read_text()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OutputError, match="the disk is full"):
            update_card(OUT, [result("NFCorpus")])
    assert CARD.read_text() == before
    assert not list(OUT.glob(".README*"))


def test_a_model_with_its_card_is_whole() -> None:
    carded("m1", "m2")
    assert mergekit_embed.verify(OUT).is_whole


# --- the Hub's own opinion ----------------------------------------------------------------


@pytest.fixture
def validator(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A server that takes cards of the licence mit; what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, **body})
            good = "license: mit" in body["content"]
            answer = b"" if good else b'"license" must be one of [mit]'
            self.send_response(200 if good else 400)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}"
    )
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_hub_may_be_asked_itself(validator: list[dict[str, Any]]) -> None:
    carded("m1", "m2")
    with pytest.raises(CheckpointError, match=r"is not what the Hub takes: .*must be one of"):
        check_card(OUT, online=True)
    described(str(OUT), "license: mit")
    check_card(OUT, online=True)
    assert [one["path"] for one in validator] == ["/api/validate-yaml"] * 2
    assert validator[0]["repoType"] == "model"


def test_a_reader_who_goes_away_does_not_cost_the_card() -> None:
    recipe("m1", "m2")
    code = "from mergekit_embed.cli.merge import main; main()"
    ran = subprocess.Popen(
        [sys.executable, "-c", code, "recipe.yaml", "-o", "out"], stdout=subprocess.PIPE
    )
    assert ran.stdout is not None
    ran.stdout.close()
    ran.wait(60)
    assert CARD.is_file()
