"""A folder of photographs with known faults."""

import pytest
from faulty_photos import FAULTS, jpeg, photograph


@pytest.fixture(scope="session")
def faulty(tmp_path_factory):
    """A folder with train and val, the classes a and b, 12 and 4 good photographs of each, and FAULTS."""
    root = tmp_path_factory.mktemp("faulty")
    files = {f"train/{name}/{n}.jpg": 100 + 100 * (name == "b") + n for name in "ab" for n in range(12)}
    files |= {f"val/{name}/{n}.jpg": 300 + 100 * (name == "b") + n for name in "ab" for n in range(4)}
    for name, content in {**{name: jpeg(photograph(number)) for name, number in files.items()}, **FAULTS}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root
