"""On a CPU: memory that tensors have freed is kept for the next ones.

glibc gives large blocks back to the kernel as soon as they are freed, and every step gets them anew,
page by page, zeroed: of a training step of a 20M-parameter model that was 6 to 12% of its time.
"""

import ctypes

KEPT = 2**31 - 1  # bytes at the end of the heap; what is freed beyond goes back

# For a process that is yet to start: everything comes from the heap, nothing from maps of its own.
ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(KEPT)}

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed() -> None:
    """The same for this process, where its C library is glibc."""
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    if choose is not None:
        choose(_M_MMAP_MAX, 0)
        choose(_M_TRIM_THRESHOLD, KEPT)
