"""Work in threads that last."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from dials_hybrid.parallel import in_threads


def test_an_error_comes_out_and_drops_what_has_not_begun():
    begun, threads = [], torch.get_num_threads()

    def fail(item):
        begun.append(item)
        time.sleep(0.01)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        list(in_threads(fail, range(100), 2))
    assert torch.get_num_threads() == threads
    count = len(begun)
    time.sleep(0.05)
    assert len(begun) == count < 10
    assert list(in_threads(abs, [-1, -2, -3], 2)) == [1, 2, 3]


def test_results_come_in_order_from_the_same_threads_every_time():
    def work(item):
        time.sleep(0.01 * (item % 3))
        return item, threading.get_ident()

    used = set()
    for _ in range(3):
        items, own = zip(*in_threads(work, range(8), 2), strict=True)
        assert items == tuple(range(8))
        used |= set(own)
    assert len(used) <= 2
    assert threading.get_ident() not in used


def test_work_that_divides_its_own_work_ends():
    """The inner calls have threads of their own: those of the outer call all wait for them."""

    def outer(item):
        return sum(in_threads(lambda x: x + item, range(4), 2))

    assert list(in_threads(outer, range(4), 2)) == [6, 10, 14, 18]


@pytest.mark.skipif(
    not os.path.isdir("/proc/self/task"), reason="this system does not list threads"
)
def test_threads_start_no_others():
    """Libraries that take a new thread for one with all cores start more, which get in the way."""
    script = """
import os
import torch
from dials_hybrid.parallel import in_threads
torch.set_num_threads(2)
before = len(os.listdir("/proc/self/task"))
a = torch.rand(300, 300, dtype=torch.complex64)
for _ in range(3):
    list(in_threads(lambda k: a @ a, range(8), 2))
assert len(os.listdir("/proc/self/task")) == before + 2
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_has_threads_of_its_own():
    script = """
import os
from dials_hybrid.parallel import in_threads
assert list(in_threads(abs, [-1, -2, -3], 2)) == [1, 2, 3]
child = os.fork()
if child == 0:
    os._exit(0 if list(in_threads(abs, [-1, -2, -3], 2)) == [1, 2, 3] else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)
