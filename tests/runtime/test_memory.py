"""What a process on the CPU does with memory that it frees."""

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

for _ in range(8):  # Until there are blocks of all sizes.
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 2 * (64 << 20) // 4096  # of the two blocks of a step


@pytest.mark.skipif(not tune_malloc(torch.device("cpu")), reason="glibc's malloc is not in use")
def test_a_step_finds_the_memory_of_the_one_before():
    def faults(word):
        command = [sys.executable, "-c", STEPS, word]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return int(result.stdout)

    assert faults("keep") < 0.05 * 3 * PAGES
    assert faults("leave") > 0.5 * 3 * PAGES  # The control, with what the process does by itself.


def test_a_gpu_keeps_its_memory_by_itself():
    assert not tune_malloc(torch.device("cuda"))
