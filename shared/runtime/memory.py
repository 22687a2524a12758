"""Tuning of glibc's allocator and of Python's garbage collector. A service's ``__main__`` calls it before the work."""

from __future__ import annotations

import ctypes
import gc

LARGE_BLOCK_OCTETS = 1024 * 1024
"""Blocks of at least this size get pages of their own: octets; a large mail grows in steps of this size."""
GC_THRESHOLD = 20_000
"""New objects between two runs of the garbage collector. A mail makes many objects and few cycles: with Python's
default of 700, a busy sender spends a tenth of its processor time on collection."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_large_blocks_apart() -> None:
    """Let malloc map every block of LARGE_BLOCK_OCTETS on its own, so that the block grows in place and its pages
    return to the system when the block is freed.

    By default, glibc raises this size up to 32 MiB when such a block is freed. Mails that grow at the same time then
    leave holes in the heap: twenty large mails take twice their size.

    For processes that assemble mails in memory. Elsewhere do not call it: a process that only passes pieces on needs a
    third more processor time, because each piece gets new pages.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_OCTETS)
        mallopt(_M_TRIM_THRESHOLD, 2 * LARGE_BLOCK_OCTETS)


def tune_garbage_collector() -> None:
    """Exclude the objects that exist now (modules, settings) from garbage collection, and collect less often."""
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
