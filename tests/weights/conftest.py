"""A limit of the memory for hostile files."""

import gc
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Limit the address space to 300 MB more than now."""
    gc.collect()
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 300_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
