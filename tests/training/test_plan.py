"""Lengths in steps, due actions, and the end of a run."""

from seresnext.training.plan import Plan, Progress


def test_is_due():
    plan = Plan(total=10, steps_per_epoch=4, log_every=1, evaluate_every=4, save_every=4, global_size=6)
    assert [step for step in range(1, 11) if plan.is_due(4, step)] == [4, 8, 10]
    assert plan.evaluations == 3


def test_a_run_is_complete_at_an_early_end_and_not_before():
    plan = Plan(20, 4, 1, 2, 2, 6, patience=4)
    best = {"step": 4, "top1": 1.0}
    assert plan.is_complete(Progress(step=8, evaluated=8, best=best))
    assert not plan.is_complete(Progress(step=6, evaluated=6, best=best))
    assert not plan.is_complete(Progress(step=8, evaluated=6, best=best))
    assert not plan.is_complete(Progress(step=2, evaluated=2, best=None))
