"""Results on the disk: mteb's own files, found by what a model is and not by where it lies.

`DIR/results/NAME/REVISION/TASK.json` is what `mteb.ResultCache(DIR)` reads, with the scores of
single texts beside it. REVISION is the hash of the model; a model of another name with the same
hash shares the results of the first. A local task has the hash of its files in the file's name.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mteb import ResultCache
from mteb.models import ModelMeta
from mteb.results import TaskResult

from .. import samples
from ..engine.staging import explained, sync
from ..errors import OutputError
from ..samples import Samples

SETTINGS = "run_settings.jsonl"
META = "model_meta.json"


class Results(ResultCache):
    """mteb's cache, with whole files only, and none of another model or other data.

    Attributes:
        fresh: gives, and forgets, the samples of the task that was just measured.
    """

    def __init__(self, folder: Path, revisions: Mapping[str, str], local: set[str]):
        """`revisions` of the tasks' data by their names; `local` tasks are known by them."""
        try:
            super().__init__(folder)
        except OSError as error:
            raise _explained(folder, error) from error
        self._revisions, self._local = revisions, local
        self.fresh: Callable[[], dict[str, Samples]] = dict

    def get_task_result_path(
        self,
        task_name: str,
        model_name: str | ModelMeta,
        model_revision: str | None = None,
        remote: bool = False,
        experiment_name: str | None = None,
    ) -> Path:
        """See `ResultCache`: with the name under which the model was first seen."""
        path = super().get_task_result_path(
            task_name, model_name, model_revision, remote, experiment_name
        )
        if task_name in self._local:
            path = path.with_name(f"{task_name}@{self._revisions[task_name][:12]}.json")
        revision = model_name.revision if isinstance(model_name, ModelMeta) else model_revision
        root = self.cache_path / "results"
        if remote or revision is None:
            return path
        known = sorted(one for one in root.glob(f"*/{revision}") if one.is_dir())
        own = root / path.relative_to(root).parts[0] / revision
        return known[0] / path.relative_to(own) if known else path

    def load_task_result(
        self,
        task_name: str,
        model_name: str | ModelMeta,
        model_revision: str | None = None,
        raise_if_not_found: bool = False,
        prioritize_remote: bool = False,
        experiment_name: str | None = None,
    ) -> TaskResult | None:
        """See `ResultCache`; None for a result of other data, and for one that cannot be read."""
        try:
            found = super().load_task_result(
                task_name,
                model_name,
                model_revision,
                raise_if_not_found,
                prioritize_remote,
                experiment_name,
            )
        except (ValueError, LookupError, TypeError, AttributeError):  # no result of mteb's
            return None
        if found is None or task_name not in self._revisions:  # a part of a task
            return found
        return found if found.dataset_revision == self._revisions[task_name] else None

    def save_to_cache(
        self,
        task_result: TaskResult,
        model_name: str | ModelMeta,
        model_revision: str | None = None,
        *,
        encode_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """See `ResultCache`: every file is whole, and the result's comes last.

        Raises:
            OutputError: when a file cannot be written.
        """
        target = self.get_task_result_path(task_result.task_name, model_name, model_revision)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self.cache_path, prefix=".partial-") as place:
                apart = ResultCache(place)
                made = apart.get_task_result_path(task_result.task_name, model_name, model_revision)
                made.parent.mkdir(parents=True)
                if (target.parent / SETTINGS).is_file():
                    shutil.copyfile(target.parent / SETTINGS, made.parent / SETTINGS)
                apart.save_to_cache(
                    task_result, model_name, model_revision, encode_kwargs=encode_kwargs
                )
                self._save_samples(target, made.parent)
                for name in (META, SETTINGS):
                    if (made.parent / name).is_file():
                        (made.parent / name).replace(target.parent / name)
                sync(made)
                made.replace(target)
        except OSError as error:
            raise _explained(self.cache_path, error) from error

    def _save_samples(self, target: Path, apart: Path) -> None:
        """Put the samples of this run beside the result, with those of parts measured before."""
        fresh = self.fresh()
        if fresh:
            kept = target.with_suffix(".npz")
            samples.save(apart / kept.name, {**samples.read(kept), **fresh})
            (apart / kept.name).replace(kept)


def _explained(folder: Path, error: OSError) -> OutputError:
    told = str(explained(folder, error)).replace("; choose another folder with -o", "")
    return OutputError(f"{told}; choose another folder with --results")
