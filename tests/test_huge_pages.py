import os
import platform
import subprocess
import sys

import pytest

from deeplab_jax import huge_pages

GLIBC = platform.libc_ver()[0] == "glibc"


@pytest.fixture
def setting(tmp_path):
    return tmp_path / "enabled"


@pytest.mark.skipif(not GLIBC, reason="a setting of glibc")
def test_they_are_asked_for_where_the_kernel_gives_them_on_request(setting):
    setting.write_text("always [madvise] never\n")
    wanted = "glibc.malloc.hugetlb=1"
    assert huge_pages.environment({}, setting) == {"GLIBC_TUNABLES": wanted}
    kept = {"GLIBC_TUNABLES": "glibc.malloc.check=1"}
    together = {"GLIBC_TUNABLES": f"glibc.malloc.check=1:{wanted}"}
    assert huge_pages.environment(kept, setting) == together


@pytest.mark.parametrize("state", ["[always] madvise never", "always madvise [never]", None])
def test_they_are_not_asked_for_where_that_changes_nothing(setting, state):
    if state is not None:
        setting.write_text(state)
    assert huge_pages.environment({}, setting) == {}


def test_a_choice_that_is_there_stands(setting):
    setting.write_text("always [madvise] never")
    no = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    assert huge_pages.environment(no, setting) == {}


def test_a_program_restarts_once_as_the_same_process(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import os, sys\n"
        "from deeplab_jax import huge_pages\n"
        "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[1:], flush=True)\n"
        "huge_pages.restart_with_them()\n"
        "print('end', flush=True)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, script, "--name=a b", "c"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    *starts, end = done.stdout.splitlines()
    more = huge_pages.environment(environment)
    assert end == "end"
    assert len(starts) == (2 if more else 1)
    assert len({line.split()[0] for line in starts}) == 1
    assert all("['--name=a b', 'c']" in line for line in starts)
    assert str(more.get("GLIBC_TUNABLES")) in starts[-1]
