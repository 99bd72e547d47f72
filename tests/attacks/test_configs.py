"""What surrounds the weights: modules, pooling, configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mergekit_embed.checkpoint import open_checkpoint

from .attack import (
    DENSE,
    MODULES,
    OUTSIDE,
    ROUTER,
    TRANSFORMER,
    WEIGHTS,
    Attacks,
    Ground,
    entry,
    hole,
    packed,
    refusal,
    write_good,
)
from .attack import write_json as put


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: repr(path)[:20])
def test_a_module_outside_the_folder_is_refused(path: Any, folder: Path) -> None:
    write_good(folder / WEIGHTS)
    (folder / "modules.json").write_text(json.dumps([TRANSFORMER, DENSE | {"path": path}]))
    message = refusal(folder)
    assert str(folder / "modules.json") in message
    assert "not inside the model's folder" in message


@pytest.mark.parametrize("path", ["../../x", "/etc", "C:\\x", "a/../../../x"])
def test_a_routed_module_outside_the_folder_is_refused(path: str, folder: Path) -> None:
    write_good(folder / WEIGHTS)
    (folder / "modules.json").write_text(json.dumps([TRANSFORMER, ROUTER]))
    (folder / "r").mkdir()
    router = {"types": {path: "sentence_transformers.models.Dense"}}
    (folder / "r" / "router_config.json").write_text(json.dumps(router))
    message = refusal(folder)
    assert str(folder / "r" / "router_config.json") in message
    assert "not inside the model's folder" in message


SHELLS: dict[str, tuple[str, Any, str]] = {
    # what is wrong: (the file, its content, what the refusal says of it)
    "modules of a map": ("modules.json", {"0": TRANSFORMER}, "not a list of modules"),
    "modules of null": ("modules.json", None, "not a list of modules"),
    "modules of a string": ("modules.json", "Transformer", "not a list of modules"),
    "a module of a string": ("modules.json", [TRANSFORMER, "2_Dense"], "not a list of modules"),
    "a module of null": ("modules.json", [None], "not a list of modules"),
    "a module of a list": ("modules.json", [[TRANSFORMER]], "not a list of modules"),
    "a module without a path": ("modules.json", [{"type": "a.Transformer"}], "names None"),
    "a module without a type": ("modules.json", [{"path": "2_Dense"}], "type of the module"),
    "a module of type null": ("modules.json", [DENSE | {"type": None}], "type of the module"),
    "a module of type list": ("modules.json", [DENSE | {"type": []}], "type of the module"),
    "modules that are not JSON": ("modules.json", b"[", "not valid JSON"),
    "modules of invalid UTF-8": ("modules.json", b'["\xff"]', "not valid JSON"),
    "a router of a list": ("r/router_config.json", [], "not a JSON object"),
    "a router of types in a list": ("r/router_config.json", {"types": ["a"]}, "not a map"),
    "a router of nameless types": ("r/router_config.json", {"types": {"a": 1}}, "type of the"),
    "an old router of null": ("r/config.json", None, "not a JSON object"),
    "a configuration of a list": ("config.json", [], "not a JSON object"),
    "a configuration of null": ("config.json", None, "not a JSON object"),
    "a configuration cut off": ("config.json", b'{"hidden_size": 3', "not valid JSON"),
    "a configuration nested deeply": ("config.json", b"[" * 100_000, "not valid JSON"),
    "a pooling of a list": ("1_Pooling/config.json", [], "not a JSON object"),
    "a pooling of invalid UTF-8": ("1_Pooling/config.json", b'{"\xff": 1}', "not valid JSON"),
    "a Dense of a string": ("2_Dense/config.json", "Tanh", "not a JSON object"),
    "prompts of a list": ("config_sentence_transformers.json", [], "not a JSON object"),
    "a tokenizer that is not JSON": ("tokenizer.json", b"\0", "not valid JSON"),
}


@pytest.mark.parametrize("case", SHELLS)
def test_a_broken_file_of_the_shell_is_refused_by_its_name(case: str, folder: Path) -> None:
    name, content, said = SHELLS[case]
    write_good(folder / WEIGHTS)
    pooling = TRANSFORMER | {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    modules = [TRANSFORMER, pooling, DENSE, ROUTER]
    (folder / "modules.json").write_text(json.dumps(modules))
    for part in ("1_Pooling", "2_Dense", "r"):
        (folder / part).mkdir()
    write_good(folder / "2_Dense" / WEIGHTS)
    open_checkpoint(folder)
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / name).write_bytes(raw)
    message = refusal(folder)
    assert str(folder / name) in message
    assert said in message


def test_a_dense_without_its_weights_is_refused(folder: Path) -> None:
    write_good(folder / WEIGHTS)
    (folder / "modules.json").write_text(json.dumps([TRANSFORMER, DENSE]))
    message = refusal(folder)
    assert str(folder / "2_Dense") in message
    assert "holds no weights" in message


def test_a_dense_in_another_format_is_refused(folder: Path) -> None:
    write_good(folder / WEIGHTS)
    (folder / "modules.json").write_text(json.dumps([TRANSFORMER, DENSE]))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "model.onnx").write_bytes(b"")
    message = refusal(folder)
    assert str(folder / "2_Dense") in message
    assert "model.onnx, which cannot be merged" in message


def test_one_name_for_two_tensors_of_two_modules_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(packed({"2_Dense/linear.weight": entry()}, b"\0" * 8))
    (folder / "modules.json").write_text(json.dumps([TRANSFORMER, DENSE]))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / WEIGHTS).write_bytes(packed({"linear.weight": entry()}, b"\0" * 8))
    message = refusal(folder)
    assert str(folder) in message
    assert "two tensors called '2_Dense/linear.weight'" in message


attack = Attacks()


@attack("hostile/config.json", "nested more than")
def configuration_as_deep_as_the_parser_goes(ground: Ground) -> None:
    """What can be read may still be too deep to be compared, or written."""
    put(ground.hostile / "config.json", b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}")


@attack("hostile/config.json", "twice")
def key_twice(ground: Ground) -> None:
    """A size that readers take the one or the other of."""
    put(ground.hostile / "config.json", b'{"model_type": "bert", "model_type": "gpt2"}')


@attack("hostile/config.json", "not valid JSON")
def number_of_five_thousand_digits(ground: Ground) -> None:
    """A number that Python refuses to read."""
    put(ground.hostile / "config.json", b'{"hidden_size": %b}' % (b"9" * 5000))


@attack("recipe.yaml", "has the configuration")
def number_of_four_thousand_digits(ground: Ground) -> None:
    """A number that Python reads, and that would fill the error."""
    put(ground.hostile / "config.json", {"model_type": "bert", "hidden_size": 10**4000})
    put(ground.good / "config.json", {"model_type": "bert", "hidden_size": 4})


@attack("recipe.yaml", "has the configuration")
def words_of_megabytes(ground: Ground) -> None:
    """A value that an error would quote."""
    put(ground.hostile / "config.json", {"model_type": "bert", "a": ["x" * 10**6] * 3})
    put(ground.good / "config.json", {"model_type": "bert", "a": 4})


@attack("recipe.yaml", "has the prompts")
def prompts_of_megabytes(ground: Ground) -> None:
    """Prompts that an error would quote."""
    name = "config_sentence_transformers.json"
    put(ground.hostile / name, {"prompts": {"query": "x" * 5 * 10**6}})
    put(ground.good / name, {"prompts": {"query": "query: "}})


@attack("recipe.yaml", "pools by")
def pooling_that_commands_the_terminal(ground: Ground) -> None:
    """An escape in a value that an error quotes."""
    put(ground.hostile / "1_Pooling/config.json", {"pooling_mode": "\x1b[2Jdone\r\nok\u202e"})


@attack("recipe.yaml", "pools by")
def hundred_thousand_ways_to_pool(ground: Ground) -> None:
    """A list that an error would quote."""
    put(ground.hostile / "1_Pooling/config.json", {"pooling_mode": ["mean"] * 100_000})


@attack("recipe.yaml", "has the modules")
def ten_thousand_modules(ground: Ground) -> None:
    """The same module over and over."""
    put(ground.hostile / "modules.json", [*MODULES, *([MODULES[2]] * 10_000)])


@attack("hostile/1_Pooling/config.json", "is too large")
def pooling_of_a_terabyte(ground: Ground) -> None:
    """A hole in the disk."""
    hole(ground.hostile / "1_Pooling/config.json", 2**40)


test_a_hostile_configuration_is_refused = attack.test()


def test_a_value_that_is_no_number_is_copied(ground: Ground) -> None:
    """Merely odd: Python writes and reads NaN, here and in transformers."""
    for model in (ground.good, ground.hostile):
        put(
            model / "config.json",
            b'{"model_type": "bert", "_a": NaN, "b": Infinity}',
        )
    ground.merged(ground.write())
