"""Keeping a process as small as its tensors."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_BYTES = 1 << 20


def compact_heap() -> None:
    """Asks glibc to give blocks of a megabyte and more back to the system as soon as they are freed.

    By default it raises that bound to 32 MB as it goes, and activations that come and go leave holes: a quarter of the
    peak in a walk. It concerns the whole process, so only programs call it, never the library. Elsewhere it does nothing.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _BYTES)
    except (OSError, AttributeError, TypeError):
        return
