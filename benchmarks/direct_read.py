"""Read files past the page cache and drop what was read: the speed of the disk itself.

    python benchmarks/direct_read.py FILE...

Several threads read blocks of 4 MiB with O_DIRECT. Exit status 3: the file system refuses.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = 2**22
THREADS = 4
REFUSED = 3


def read(part: tuple[str, int]) -> int:
    """Read one block of a file, as (path, start); bytes read."""
    path, start = part
    with mmap.mmap(-1, BLOCK) as block:  # page-aligned, as O_DIRECT demands
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            return os.preadv(descriptor, [block], start)
        finally:
            os.close(descriptor)


def main(files: Sequence[str]) -> None:
    """Read all files; SystemExit(3) where O_DIRECT is refused."""
    sizes = {file: Path(file).stat().st_size for file in files}
    parts = [(file, start) for file in files for start in range(0, sizes[file], BLOCK)]
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            taken = sum(pool.map(read, parts))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        print(f"{error.filename or files[0]}: the file system refuses O_DIRECT", file=sys.stderr)
        raise SystemExit(REFUSED) from None
    print(taken)


if __name__ == "__main__":
    main(sys.argv[1:])
