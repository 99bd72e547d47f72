"""What is not a file, or is one somewhere else: links, pipes, devices, sockets, folders."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from .attack import (
    INDEX,
    MODULES,
    NAME,
    PICKLE,
    ROUTER,
    SHARD,
    TRANSFORMER,
    WEIGHTS,
    Attacks,
    Ground,
    entry,
    hole,
    packed,
    write_json,
    write_model,
)

attack = Attacks()


# --- in the place of a file ---------------------------------------------------------------


def pipe(path: Path) -> None:
    """Reading waits for a writer that never comes."""
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    """Opening fails in a way of its own."""
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def endless_device(path: Path) -> None:
    """Reading never ends."""
    path.symlink_to("/dev/zero")


def terminal(path: Path) -> None:
    """Reading would wait for the keyboard."""
    path.symlink_to("/dev/tty")


def folder(path: Path) -> None:
    """Reading fails."""
    path.mkdir()


def link_to_itself(path: Path) -> None:
    """Following it never ends."""
    path.symlink_to(path.name)


def link_to_nothing(path: Path) -> None:
    """What it leads to is not there."""
    path.symlink_to("gone")


INSTEAD = [pipe, unix_socket, endless_device, terminal, folder, link_to_itself, link_to_nothing]


@pytest.mark.parametrize("instead", INSTEAD, ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "tokenizer.json",
        "vocab.txt",
        "config_sentence_transformers.json",
    ],
)
def test_what_is_no_file_is_refused_by_its_name(
    name: str, instead: Callable[[Path], None], ground: Ground
) -> None:
    path = ground.hostile / name
    path.unlink(missing_ok=True)
    instead(path)
    ground.refused(ground.write(), names=path, says="is not a file")


@pytest.mark.parametrize("instead", INSTEAD, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", [WEIGHTS, INDEX, PICKLE])
def test_what_is_no_file_is_no_weights(
    name: str, instead: Callable[[Path], None], ground: Ground
) -> None:
    (ground.hostile / WEIGHTS).unlink()
    instead(ground.hostile / name)
    ground.refused(ground.write(), names=ground.hostile, says="holds no weights")


@pytest.mark.parametrize("instead", INSTEAD, ids=lambda make: make.__name__)
def test_what_is_no_file_is_no_shard(instead: Callable[[Path], None], ground: Ground) -> None:
    (ground.hostile / WEIGHTS).unlink()
    write_json(ground.hostile / INDEX, {"weight_map": {NAME: SHARD}})
    instead(ground.hostile / SHARD)
    ground.refused(ground.write(), names=ground.hostile / INDEX, says=f"'{SHARD}', which is not")


@pytest.mark.parametrize("instead", INSTEAD, ids=lambda make: make.__name__)
def test_what_is_no_file_is_no_recipe(instead: Callable[[Path], None], ground: Ground) -> None:
    inner = ground.root / "inner.yaml"
    instead(inner)
    models = [{"model": str(ground.good)}, {"model": str(inner)}]
    ground.refused(ground.write(models=models), names=inner)


@pytest.mark.parametrize(
    "instead", [pipe, unix_socket, endless_device, terminal, link_to_itself, link_to_nothing]
)
@pytest.mark.parametrize("name", ["notes.txt", "1_Pooling/notes.txt"])
def test_what_is_no_file_is_not_copied_into_the_result(
    name: str, instead: Callable[[Path], None], ground: Ground
) -> None:
    """The first model's other files go into the result; a device would fill the disk."""
    path = ground.hostile / name
    instead(path)
    models = [{"model": str(model)} for model in (ground.hostile, ground.good)]
    ground.refused(ground.write(models=models), names=path)


# --- links to folders ---------------------------------------------------------------------


@pytest.mark.parametrize("target", [".", "..", "/", "/etc", "../good", "1_Pooling"])
def test_the_folder_behind_a_link_is_not_copied_into_the_result(
    target: str, ground: Ground
) -> None:
    """`.` has itself in it without end, two such links twice as often; `/` is everything."""
    for name in ("a", "b"):
        (ground.hostile / name).symlink_to(target)
    models = [{"model": str(model)} for model in (ground.hostile, ground.good)]
    ground.refused(ground.write(models=models), names=ground.hostile, says="is a link to a folder")


# --- what is merely odd -------------------------------------------------------------------


def test_a_model_of_links_to_files_elsewhere_is_merged(ground: Ground) -> None:
    """The Hub's cache is made so: a snapshot of links to blobs outside of it."""
    blobs = ground.root / "blobs"
    blobs.mkdir()
    files = [path for path in ground.hostile.rglob("*") if path.is_file()]
    for number, path in enumerate(files):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    plain = write_model(ground.root / "plain", seed=2)
    models = [{"model": str(model)} for model in (ground.hostile, ground.good)]
    made = ground.merged(ground.write(models=models))
    assert not any(path.is_symlink() for path in made.rglob("*"))
    expected = (made / WEIGHTS).read_bytes()
    shutil.rmtree(made)
    models[0] = {"model": str(plain)}
    assert (ground.merged(ground.write(models=models)) / WEIGHTS).read_bytes() == expected


def test_a_link_to_a_model_is_a_model(ground: Ground) -> None:
    (ground.root / "link").symlink_to(ground.hostile)
    ground.merged(ground.write(models=[{"model": str(ground.root / "link")}]))


def test_what_lies_beside_a_model_that_is_no_file_is_left_alone_where_nothing_is_copied(
    ground: Ground,
) -> None:
    """Only the first model's other files are copied."""
    os.mkfifo(ground.hostile / "pipe")
    (ground.hostile / "loop").symlink_to(".")
    ground.merged(ground.write())


# --- paths out of the folder --------------------------------------------------------------


@attack(f"hostile/{INDEX}", "not inside the model's folder")
def shard_of_another_model(ground: Ground) -> None:
    """An index that takes a tensor from another model's file."""
    (ground.hostile / WEIGHTS).unlink()
    write_json(ground.hostile / INDEX, {"weight_map": {NAME: f"../good/{WEIGHTS}"}})


@attack("hostile/modules.json", "not inside the model's folder")
def module_of_another_model(ground: Ground) -> None:
    """A module that lies in another model's folder."""
    write_json(
        ground.hostile / "modules.json", [TRANSFORMER, MODULES[2] | {"path": "../good/2_Dense"}]
    )


@attack("hostile/r/router_config.json", "not inside the model's folder")
def routed_module_of_another_model(ground: Ground) -> None:
    """A Router with a module that climbs out of its own folder, and then of the model's."""
    write_json(ground.hostile / "modules.json", [*MODULES, ROUTER])
    types = {"../../good/2_Dense": "sentence_transformers.models.Dense"}
    write_json(ground.hostile / "r/router_config.json", {"types": types})


@attack("hostile/2_Dense", "holds no weights")
def module_behind_a_link_to_nothing(ground: Ground) -> None:
    """The folder of a module is a link that leads nowhere."""
    shutil.rmtree(ground.hostile / "2_Dense")
    (ground.hostile / "2_Dense").symlink_to("gone")


@attack("hostile/vocab.txt", "is too large")
def vocabulary_of_a_terabyte(ground: Ground) -> None:
    """A list of tokens that is a hole in the disk: it takes none, and fills any memory."""
    hole(ground.hostile / "vocab.txt", 2**40)


@attack("hostile/merges.txt", "is too large")
def merges_of_a_terabyte(ground: Ground) -> None:
    """The same for a BPE's merges."""
    hole(ground.hostile / "merges.txt", 2**40)


@attack("hostile/sentencepiece.bpe.model", "is too large")
def sentencepiece_of_a_terabyte(ground: Ground) -> None:
    """The same for SentencePiece."""
    hole(ground.hostile / "sentencepiece.bpe.model", 2**40)


@attack("hostile/config.json", "is too large")
def configuration_of_a_terabyte(ground: Ground) -> None:
    """The same for JSON."""
    hole(ground.hostile / "config.json", 2**40)


@attack("out", "needs")
def file_beside_larger_than_the_disk(ground: Ground) -> dict[str, object]:
    """A file that would be copied into the result, and is larger than the disk."""
    hole(ground.hostile / "notes.txt", shutil.disk_usage(ground.root).free + 2**30)
    return {"models": [{"model": str(ground.hostile)}, {"model": str(ground.good)}]}


@attack("out", "needs")
def weights_larger_than_the_disk(ground: Ground) -> dict[str, object]:
    """A true header before a hole that is larger than the disk; both models tell the same."""
    size = shutil.disk_usage(ground.root).free // 4096 * 4096 + 2**30
    for model in (ground.hostile, ground.good):
        told = {NAME: entry(shape=[size // 4], data_offsets=[0, size])}
        (model / WEIGHTS).write_bytes(packed(told))
        hole(model / WEIGHTS, (model / WEIGHTS).stat().st_size + size)
    return {}


test_what_leads_elsewhere_is_refused = attack.test()
