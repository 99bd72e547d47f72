"""What benchmarks/speed.py runs: merges by every tool, and the floors beneath them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import direct_read
from checkpoints import Models
from processes import MERGEKIT, ours

DIRECT = str(Path(direct_read.__file__))

IN_MEMORY = """
import json, sys
from sentence_transformers import SentenceTransformer
SentenceTransformer.merge(**json.loads(sys.argv[1])).save_pretrained(sys.argv[2])
"""

OURS, FLOOR = "ours", "floor"
PEERS = ("mergekit", "SentenceTransformer.merge")
WEIGHTS = (0.4, 0.3, 0.2, 0.1)
COPY, COPY_SYNCED, DIRECTLY = "copy", "copy, synced", ", direct"


@dataclass(frozen=True)
class Method:
    """One merge: what the recipe says beside the models."""

    members: int = 4
    base: bool = False
    weighted: bool = True
    parameters: Mapping[str, float] = field(default_factory=dict)

    def inputs(self, models: Models) -> list[Path]:
        """The folders that are read."""
        return [*models.members[: self.members], *([models.base] if self.base else [])]

    def recipe(self, name: str, models: Models) -> dict[str, Any]:
        """What our command and mergekit's read."""
        found: dict[str, Any] = {"merge_method": name, "dtype": "bfloat16"}
        listed: list[dict[str, Any]] = [
            {"model": str(member)} for member in models.members[: self.members]
        ]
        if self.weighted:
            for model, weight in zip(listed, WEIGHTS, strict=False):
                model["parameters"] = {"weight": weight}
        found["models"] = listed
        if self.base or name == "slerp":
            found["base_model"] = str(models.base if self.base else models.members[0])
        if self.parameters:
            found["parameters"] = dict(self.parameters)
        return found

    def arguments(self, name: str, models: Models) -> dict[str, Any]:
        """The same for SentenceTransformer.merge."""
        weights = {"weight": WEIGHTS[: self.members]} if self.weighted else {}
        found: dict[str, Any] = {
            "models": [str(member) for member in models.members[: self.members]],
            "method": name,
            "parameters": {**weights, **self.parameters},
            "out_dtype": "bfloat16",
        }
        if self.base:
            found["base_model"] = str(models.base)
        return found


METHODS: dict[str, Method] = {
    "linear": Method(),
    "slerp": Method(members=2, weighted=False, parameters={"t": 0.4}),
    "multislerp": Method(),
    "karcher": Method(weighted=False),
    "ties": Method(base=True, parameters={"density": 0.3}),
    "dare_ties": Method(base=True, parameters={"density": 0.3}),
    "model_stock": Method(base=True, weighted=False),
    "della": Method(base=True, parameters={"density": 0.3, "epsilon": 0.1}),
    "sce": Method(base=True, weighted=False, parameters={"select_topk": 0.3}),
    "median": Method(weighted=False),
}
PEER_METHODS = ("linear", "slerp", "multislerp", "karcher", "ties", "dare_ties")


@dataclass(frozen=True)
class Contestant:
    """Something that is timed: a merge by one tool, or a floor."""

    tool: str
    what: str
    inputs: Sequence[Path]
    command: Sequence[str]

    def __str__(self) -> str:
        return f"{self.tool}: {self.what}"


@dataclass(frozen=True)
class Race:
    """What runs against what, and how often."""

    models: Models
    scratch: Path
    methods: Sequence[str]
    peer_methods: Sequence[str]
    peers: Mapping[str, str]
    runs: int
    peer_runs: int

    @property
    def target(self) -> Path:
        """Where every contestant writes; removed after each run."""
        return self.scratch / "out"

    def merges(self, *, with_peers: bool) -> list[Contestant]:
        """Every method by every tool that is to run it."""
        found = []
        for name in self.methods:
            method = METHODS[name]
            recipe = self.scratch / f"{name}.yaml"
            recipe.write_text(json.dumps(method.recipe(name, self.models)) + "\n")
            commands = {OURS: ours([recipe], self.target, "--json")}
            if with_peers and name in self.peer_methods:
                arguments = json.dumps(method.arguments(name, self.models))
                by_peers: dict[str, list[str]] = {
                    PEERS[0]: [MERGEKIT, str(recipe), str(self.target), "--quiet", "--async-write"],
                    PEERS[1]: [IN_MEMORY, arguments, str(self.target)],
                }
                for peer, python in self.peers.items():
                    commands[peer] = [python, "-c", *by_peers[peer]]
            inputs = weights_of(method.inputs(self.models))
            found += [Contestant(tool, name, inputs, line) for tool, line in commands.items()]
        return found

    def floors(self, *, cold: bool) -> list[Contestant]:
        """Reading what the methods read; one copy of a member, which is as much as they write."""
        found = []
        for name, inputs in self._read().items():
            found.append(Contestant(FLOOR, name, inputs, cat(inputs)))
            if cold:
                direct = [sys.executable, DIRECT, *map(str, inputs)]
                found.append(Contestant(FLOOR, name + DIRECTLY, inputs, direct))
        if not cold:
            member = weights_of(self.models.members[:1])
            source = str(self.models.members[0])
            copy = ["cp", "-r", "--reflink=never", source, str(self.target)]
            then_sync = 'cp -r --reflink=never "$0" "$1" && sync "$1"/*.safetensors'
            synced = ["sh", "-c", then_sync, source, str(self.target)]
            found.append(Contestant(FLOOR, COPY, member, copy))
            found.append(Contestant(FLOOR, COPY_SYNCED, member, synced))
        return found

    def _read(self) -> dict[str, list[Path]]:
        inputs = {name: METHODS[name].inputs(self.models) for name in self.methods}
        return {read_floor(name): weights_of(folders) for name, folders in inputs.items()}


def read_floor(method: str) -> str:
    """The name of the floor that reads what this method reads."""
    count = METHODS[method].members + METHODS[method].base
    return f"read {count} models"


def cat(files: Sequence[Path]) -> list[str]:
    """The command that reads files, one after the other, and drops what it read."""
    return ["sh", "-c", 'exec cat "$@" > /dev/null', "cat", *map(str, files)]


def weights_of(folders: Sequence[Path]) -> list[Path]:
    """The safetensors files of model folders."""
    return [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
