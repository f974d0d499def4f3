"""Keep freed memory instead of giving it back to the kernel after every layer.

glibc maps large blocks afresh and returns them at once, so that a training step on a CPU spends much of its time in
page faults. Raising the thresholds keeps the pages, at the price of a higher resident peak.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def tune() -> bool:
    """Set the allocator for training; true if it took effect (glibc on Linux only).

    Huge pages for torch's own blocks (``THP_MEM_ALLOC_ENABLE``) are asked for as well; torch reads that variable at
    its first allocation, so call this early.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version.restype = ctypes.c_char_p
        library.gnu_get_libc_version()
        done = [
            library.mallopt(_M_MMAP_MAX, 0),
            library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1),
            library.mallopt(_M_TOP_PAD, 256 * 2**20),
        ]
    except (OSError, AttributeError):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    return all(done)
