"""The result of a step, on its way to the host and there."""

import torch

from seresnext.training.result import PendingResult, StepResult

NUMBERS = torch.tensor([1.0, 3.0, 1.0, 0.0, 2.0, 0.5, 5.0, 4.0, 1.0, 8.0])
RESULT = StepResult(
    7,
    (1.0, 3.0),
    grad_norm=4.0,
    data_wait=0.25,
    stop=True,
    save_failed=False,
    skipped=True,
    loss_scale=8.0,
    bad_images=2,
    correct=5,
)


def test_a_pending_result_waits_for_its_own_arrival_alone():
    waited = []

    class Arrival:
        def synchronize(self):
            waited.append(self)

    arrival = Arrival()
    assert PendingResult(7, 2, NUMBERS, arrival).result() == RESULT
    assert waited == [arrival]
    assert PendingResult.queue(7, 2, NUMBERS).result() == RESULT
