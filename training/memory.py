"""How a process holds memory between steps."""

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Lets glibc keep what tensors free for the tensors of the next step; nothing happens with another C library.

    By default it maps each large tensor anew and gives it back when it is freed: the kernel then clears and maps every
    page of every activation in every step, which took a fifth of a step on two cores. Peak memory stays the same, only
    that it is kept.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            library.mallopt(parameter, _LARGEST_INT)
