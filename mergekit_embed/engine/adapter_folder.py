"""Writing a PEFT adapter: beside its destination first, and renamed at the end."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Shape, layout
from ..checkpoint.adapter import SAFETENSORS
from ..checkpoint.adapter_config import CONFIG
from ..dtypes import DType
from ..errors import OutputError, OutputExistsError


class Entry(NamedTuple):
    """A tensor to be written: its stored type, its shape, and its bytes."""

    dtype: DType
    shape: Shape
    raw: NDArray[np.uint8]


def entry(values: NDArray[np.float64]) -> Entry:
    """Numbers to be stored as float32."""
    stored = np.ascontiguousarray(values, dtype=np.float32)
    return Entry(DType.F32, stored.shape, stored.reshape(-1).view(np.uint8))


def check_free(output: Path) -> None:
    """Refuse a destination that is taken.

    Raises:
        OutputExistsError: when something is there that is no empty folder.
    """
    if os.path.lexists(output) and not (output.is_dir() and not any(output.iterdir())):
        raise OutputExistsError(f"{output}: is there already; choose another folder with -o")


def write_adapter(output: Path, entries: Mapping[str, Entry], config: Mapping[str, object]) -> int:
    """Write the folder of an adapter, whole or not at all; the bytes of its files.

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
        header, offsets, size = layout({n: (e.dtype, e.shape) for n, e in entries.items()})
        with (partial / SAFETENSORS).open("wb") as file:
            file.write(header)
            for name in sorted(offsets, key=lambda name: offsets[name]):
                file.write(entries[name].raw.data)
            file.flush()
            os.fsync(file.fileno())
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (partial / CONFIG).write_text(text, encoding="utf-8")
        check_free(output)
        partial.rename(output)
        return size + len(text.encode())
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"{output}: cannot be written: {reason}; free some space, or choose another folder "
            "with -o"
        ) from error
    finally:
        if partial is not None and partial.exists():
            shutil.rmtree(partial, ignore_errors=True)
