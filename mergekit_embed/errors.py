"""Every error a user can meet, in one tree.

`exit_code` is what the commands return: 2 when the recipe or the command line is wrong and
nothing was touched, 1 for anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class MergekitEmbedError(Exception):
    """The root: catch this to catch everything that mergekit_embed raises on purpose.

    `recipe` is the file of the recipe that failed, where several run together and it is known.
    """

    exit_code = 1
    recipe: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the constructor, whose arguments are not those that Exception remembers."""
        return _restored, (type(self), self.args, dict(self.__dict__))


def _restored(
    kind: type[MergekitEmbedError], arguments: tuple[Any, ...], attributes: Mapping[str, Any]
) -> MergekitEmbedError:
    """An error that another process met."""
    error = kind.__new__(kind)
    error.args = arguments
    error.__dict__.update(attributes)
    return error


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where: `recipe.yaml:12:7`, a member, a tensor."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class ProblemsError(MergekitEmbedError):
    """Several problems found together; `problems` holds them all, in the order of the file.

    `outcome` says what they kept from happening.
    """

    exit_code = 2
    outcome = "nothing was touched"

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class RecipeError(ProblemsError):
    """The recipe is wrong: syntax, keys, values, or a model it names does not exist."""


class PlanError(ProblemsError):
    """The recipe is well formed, but its members cannot be merged as it says."""


class DataError(ProblemsError):
    """Rows of a data set are not what they should be; every problem says the file and the line."""


class UsageError(MergekitEmbedError):
    """The command line, or an argument of a Python call, is wrong."""

    exit_code = 2


class CheckpointError(MergekitEmbedError):
    """A model folder or a file in it is broken, truncated, hostile or of an unknown format."""

    def __init__(self, path: Path | str, message: str):
        self.path = Path(path)
        super().__init__(f"{path}: {message}")


class ChangedError(CheckpointError):
    """A file of a model is not what it was when the merge was planned."""


class NonFiniteError(MergekitEmbedError):
    """A member holds, or the merge would give, not-a-number or infinity."""


class OutputError(MergekitEmbedError):
    """The result cannot be written: read-only, disk full, or taken by another run."""


class OutputExistsError(OutputError):
    """The destination is there already, and replacing it was not asked for (or is not safe)."""

    exit_code = 2


class PublishError(ProblemsError):
    """A model, or the place on the Hub, is not such that the one may be pushed to the other."""

    exit_code = 1
    outcome = "nothing was pushed"


class HubError(MergekitEmbedError):
    """The Hub, or the way to it, refuses; the message says what to do."""


class WorkerError(MergekitEmbedError):
    """The machines that share a merge died again and again, or none is left."""
