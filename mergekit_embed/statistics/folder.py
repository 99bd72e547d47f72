"""Writing a folder of statistics: beside its destination first, and renamed at the end."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Shape, layout
from ..checkpoint.statistics import FILES, SUMMARY
from ..dtypes import DType
from ..errors import OutputError, OutputExistsError


def check_free(output: Path, *, overwrite: bool) -> None:
    """Refuse a destination that is taken by anything but statistics that may be replaced.

    Raises:
        OutputExistsError: saying what is there.
    """
    if not os.path.lexists(output) or (output.is_dir() and not any(output.iterdir())):
        return
    ours = {SUMMARY, *FILES.values()}
    if not output.is_dir() or not {path.name for path in output.iterdir()} <= ours:
        raise OutputExistsError(f"{output}: is there already; choose another folder with -o")
    if not overwrite:
        raise OutputExistsError(
            f"{output}: holds statistics already; pass --overwrite to replace them all, or choose "
            "another folder with -o"
        )


@contextmanager
def new_folder(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `output` that takes its place when the block ends well, and else goes away.

    Raises:
        OutputExistsError: when the destination has been taken meanwhile.
        OutputError: when it cannot be written.
    """
    partial: Path | None = None
    try:
        parent = output.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=parent))
        partial.chmod(0o755)
        yield partial
        check_free(output, overwrite=overwrite)
        if output.is_dir() and any(output.iterdir()):
            replaced = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=parent))
            output.rename(replaced)
            partial.rename(output)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            partial.rename(output)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"{output}: cannot be written: {reason}; free some space, or choose another folder "
            "with -o"
        ) from error
    finally:
        if partial is not None and partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


def write_tensors(
    file: Path,
    shapes: Mapping[str, Shape],
    values: Callable[[str], NDArray[Any]],
    metadata: Mapping[str, str],
) -> int:
    """Write tensors as float32, one after the other; the bytes of the file.

    Args:
        file: what is written.
        shapes: of every tensor, by name.
        values: gives the numbers of a tensor; asked once for each.
        metadata: of the file's header.
    """
    wanted = {name: (DType.F32, shape) for name, shape in shapes.items()}
    header, offsets, size = layout(wanted, metadata)
    with file.open("wb") as stream:
        stream.write(header)
        for name in sorted(offsets, key=lambda name: offsets[name]):
            stored = np.ascontiguousarray(values(name), dtype=np.float32)
            stream.write(stored.reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())
    return size


def write_summary(folder: Path, summary: Mapping[str, Any]) -> int:
    """Write statistics.json; its bytes."""
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    (folder / SUMMARY).write_text(text, encoding="utf-8")
    return len(text.encode())
