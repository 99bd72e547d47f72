"""What the methods say of tensors that is no error."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .nested import plans_within
from .plan import Job, Plan


@dataclass
class Notes:
    """Notes of one plan's method, with the tensors that each is about. Safe from any thread."""

    tensors: dict[str, list[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, job: Job, messages: Iterable[str]) -> None:
        """Take note of what is said of a job's tensor."""
        self.add_named(job.name, messages)

    def add_named(self, tensor: str, messages: Iterable[str]) -> None:
        """Take note of what is said of a tensor."""
        with self.lock:
            for message in dict.fromkeys(messages):
                names = self.tensors.setdefault(message, [])
                if tensor not in names:
                    names.append(tensor)

    def of(self, job: Job) -> tuple[str, ...]:
        """What was said of one tensor."""
        with self.lock:
            return tuple(said for said, names in self.tensors.items() if job.name in names)

    def listed(self) -> list[tuple[str, str]]:
        """Every tensor with something that was said of it."""
        with self.lock:
            return [(name, said) for said, names in self.tensors.items() for name in names]

    def summaries(self) -> tuple[str, ...]:
        """A line for every message, with the first tensors that it is about."""
        found = []
        for message, names in self.tensors.items():
            names.sort()
            more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
            found.append(f"{', '.join(names[:3])}{more}: {message}")
        return tuple(sorted(found))


class Said:
    """The notes of some plans, nested ones among them, which know each other by number."""

    def __init__(self, plans: Sequence[Plan]):
        self.by_number = [Notes() for _ in plans]
        self._by_plan = {id(plan): notes for plan, notes in zip(plans, self.by_number, strict=True)}

    def about(self, plan: Plan) -> Notes:
        """The notes of one plan."""
        return self._by_plan[id(plan)]

    def listed(self) -> list[tuple[int, str, str]]:
        """All that was said: the plan's number, the tensor, the message. Plain data."""
        return [
            (number, *one) for number, notes in enumerate(self.by_number) for one in notes.listed()
        ]

    def take(self, listed: Iterable[tuple[int, str, str]]) -> None:
        """Take over what was said elsewhere."""
        for number, tensor, message in listed:
            self.by_number[number].add_named(tensor, [message])

    def summary(self, plan: Plan) -> tuple[str, ...]:
        """What the methods said of the plan's tensors, and of its nested ones."""
        found = [line for one in plans_within(plan) for line in self.about(one).summaries()]
        return tuple(dict.fromkeys(found))
