"""Freed memory stays in a process that trains on the CPU."""

import subprocess
import sys

import pytest
import torch

from seresnext.runtime import tune_malloc

STEPS = """
import resource, sys, torch
from seresnext.runtime import tune_malloc
if sys.argv[1] == "keep":
    assert tune_malloc(torch.device("cpu"))

def step():
    a = torch.zeros(16 << 20)  # 64 MiB, above any threshold at which glibc asks the system
    return (a + 1).sum()

for _ in range(8):  # warm-up
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 2 * (64 << 20) // 4096  # two blocks a step


@pytest.mark.skipif(not tune_malloc(torch.device("cpu")), reason="glibc's malloc is not in use")
def test_a_step_reuses_the_memory_of_the_previous_step():
    def page_faults(mode):
        command = [sys.executable, "-c", STEPS, mode]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return int(result.stdout)

    assert page_faults("keep") < 0.05 * 3 * PAGES
    assert page_faults("leave") > 0.5 * 3 * PAGES  # The control, without the setting.


def test_nothing_is_set_for_a_gpu():
    assert not tune_malloc(torch.device("cuda"))
