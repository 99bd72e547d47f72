"""Statistics of a model on a probe set, which the data-aware merges weigh by."""

from .collect import Collected, Options, collect_statistics

__all__ = ["Collected", "Options", "collect_statistics"]
