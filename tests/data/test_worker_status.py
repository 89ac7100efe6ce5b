import multiprocessing

import numpy as np

from seresnext.data.order import BatchKey
from seresnext.data.worker_status import MOST_IMAGES, WorkerStatus, set_current_batch, set_current_images


def key(step: int, replica: int) -> BatchKey:
    return BatchKey(step, replica, 0, np.arange(4))


def test_the_last_record_of_each_worker_is_visible_outside():
    table = WorkerStatus(3)

    def work(number: int) -> None:
        table.enter(number)
        set_current_batch(key(5, number))
        set_current_images(range(MOST_IMAGES))
        set_current_images([number, 10**15])

    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(number,)) for number in (0, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [table.images_of(number) for number in range(3)] == [[0, 10**15], [], [2, 10**15]]
    assert table.images_for(5, 2) == [2, 10**15]
    assert table.images_for(5, 1) == table.images_for(0, 0) == []


def test_a_new_batch_starts_with_no_images(monkeypatch):
    monkeypatch.setattr("seresnext.data.worker_status._own", None)
    table = WorkerStatus(1)
    table.enter(0)
    set_current_batch(key(1, 0))
    set_current_images([3])
    set_current_batch(key(2, 1))
    assert table.images_for(2, 1) == []
    assert table.images_for(1, 0) == []


def test_nothing_is_recorded_outside_of_workers():
    set_current_batch(key(0, 0))
    set_current_images([1, 2])
    assert WorkerStatus(1).images_of(0) == []
