import multiprocessing

import pytest
import torch

from seresnext.data.loading import slots
from seresnext.data.loading.slots import Slots, allocate, is_own


@pytest.fixture(autouse=True)
def no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_own", None)


def test_what_a_worker_writes_is_seen_outside_and_in_no_other_place():
    places = Slots(3, 5000)

    def work() -> None:
        places.enter(4)
        memory = allocate(2, 40, 3)
        assert memory is not None
        memory.fill_(7)

    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    worker.join()
    assert places.memory(1)[:240].tolist() == [7] * 240
    assert [int(places.memory(number).sum()) for number in range(3)] == [0, 7 * 240, 0]


def test_without_a_place_or_with_a_smaller_one_there_is_no_memory():
    assert allocate(1) is None
    assert not is_own(torch.empty(3))
    places = Slots(2, 4096)
    places.enter(0)
    assert allocate(4097) is None
    memory = allocate(64, 64)
    assert memory is not None
    assert is_own(memory)
    assert is_own(memory[:1])
    places.enter(1)
    assert not is_own(memory)
