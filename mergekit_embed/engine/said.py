"""What methods say of tensors while a merge runs."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from .plan import Job


@dataclass
class Said:
    """Notes of the methods, with the tensors that each is about."""

    tensors: dict[str, list[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, job: Job, messages: list[str]) -> None:
        """Take note of what was said of a tensor. Safe from any thread."""
        with self.lock:
            for message in dict.fromkeys(messages):
                names = self.tensors.setdefault(message, [])
                if job.name not in names:
                    names.append(job.name)

    def of(self, job: Job) -> tuple[str, ...]:
        """What was said of one tensor."""
        with self.lock:
            return tuple(said for said, names in self.tensors.items() if job.name in names)

    def summaries(self) -> tuple[str, ...]:
        """Every message once, behind the first tensors that it is about."""
        found = []
        for message, names in self.tensors.items():
            names.sort()
            more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
            found.append(f"{', '.join(names[:3])}{more}: {message}")
        return tuple(sorted(found))
