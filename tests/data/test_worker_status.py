import multiprocessing

import numpy as np

from seresnext.data.order import BatchKey
from seresnext.data.worker_status import MOST_IMAGES, WorkerStatus, set_current_batch, set_current_images


def key(step: int, replica: int) -> BatchKey:
    return BatchKey(step, replica, 0, np.arange(4))


def test_the_last_record_of_each_worker_is_visible_outside_and_a_new_batch_has_no_images():
    table = WorkerStatus(3)

    def work(number: int) -> None:
        table.enter(number)
        set_current_batch(key(5, number))
        set_current_images(range(MOST_IMAGES))
        set_current_images([number, 10**15])
        if number == 2:
            set_current_batch(key(6, 1))

    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [table.images_of(number) for number in range(3)] == [[0, 10**15], [1, 10**15], []]
    assert table.images_for(5, 1) == [1, 10**15]
    assert table.images_for(6, 1) == table.images_for(5, 2) == table.images_for(0, 0) == []


def test_nothing_is_recorded_outside_of_workers():
    set_current_batch(key(0, 0))
    set_current_images([1, 2])
    assert WorkerStatus(1).images_of(0) == []
