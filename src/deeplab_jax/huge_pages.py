"""Huge pages for XLA's scratch memory on CPU; standard library alone, as it runs before all else.

XLA's CPU client asks the C library for the whole scratch memory of a program at every call, some
hundreds of MB, and Linux hands it out in pages of 4 KB, each cleared at first touch. With pages of
2 MB a training step of MobileNetV2 takes 1.7 times less (benchmarks/NOTES.md). Many distributions
give them only to programs that ask; glibc asks for a program whose environment says so, and reads
that once, at the start of the process.
"""

import contextlib
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TUNABLE = "glibc.malloc.hugetlb"


def environment(variables: Mapping[str, str], setting: Path = SETTING) -> dict[str, str]:
    """What to add to the environment `variables` for huge pages; {} where it would not help.

    Not on anything but Linux with glibc 2.35, not where the kernel gives them to all or to none,
    and not over a choice that is already there: GLIBC_TUNABLES=glibc.malloc.hugetlb=0 says no.
    """
    present = variables.get("GLIBC_TUNABLES", "")
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
        return {}
    if TUNABLE in present or not setting.exists() or "[madvise]" not in setting.read_text():
        return {}
    return {"GLIBC_TUNABLES": ":".join(filter(None, [present, f"{TUNABLE}=1"]))}


def restart_with_them() -> None:
    """Starts this program anew, in the same process, with the environment it should have had."""
    if more := environment(os.environ):
        with contextlib.suppress(OSError):  # then slower, not broken
            os.execve(sys.executable, sys.orig_argv, os.environ | more)
