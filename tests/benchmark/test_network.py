"""The benchmark of the network: shares by hand from the times of stand-ins, and a real run on two hosts."""

from contextlib import ExitStack, nullcontext
from unittest.mock import Mock

import pytest
from benchmark import network
from benchmark.two_hosts import two_hosts
from conftest import in_ci

from seresnext.errors import UsageError

SMALL = ["--model", "seresnext26", "--size", "32", "--micro", "2", "--rounds", "2"]


def test_shares_by_hand(measure, monkeypatch):
    """A step apart takes 2 seconds. The fastest round counts, and the slower process of a round."""
    hosts = (Mock(), Mock())
    times = {("ours", "none", True): 8.0, ("ours", "bf16", True): 5.0, ("ours", "none", False): 2.0}
    rounds: dict[tuple, int] = {}

    class Workers(ExitStack):
        def __init__(self, options, count, together=False, hosts=()):
            super().__init__()
            self.kind = (options.kind, options.compress, together)
            assert (count, options.threads, len(hosts)) == (2, 1, 2)

        def round(self):
            rounds[self.kind] = rounds.get(self.kind, 0) + 1
            late = 1.0 if rounds[self.kind] % 3 == 0 else 0.0
            return [{"seconds": times[self.kind] + late}, {"seconds": times[self.kind] / 2}]

    monkeypatch.setattr(network, "two_hosts", lambda: nullcontext(hosts))
    monkeypatch.setattr(network, "measure_megabits", lambda *pair: 90.0)
    monkeypatch.setattr(network, "Workers", Workers)
    figures = measure(network, *SMALL, "--megabits", "100", "--megabits", "0")
    assert figures["gradient_bytes"] == 4 * 16_790_280
    assert [row["megabits"] for row in figures["rows"]] == [100, 0]
    for row in figures["rows"]:
        assert row["seconds_a_step"] == {"fp32": 8, "bf16": 5}
        assert row["share"] == {"fp32": pytest.approx(0.75), "bf16": pytest.approx(0.6)}
        assert row["measured_megabits"] == 90
    assert figures["seconds_a_step_apart"] == 2
    assert set(rounds.values()) == {6}  # For each limit a round that does not count, and two that do.
    for host in hosts:
        assert [call.args for call in host.limit.call_args_list] == [(100,), (None,)]


@pytest.mark.full
def test_two_hosts(bench):
    try:
        with two_hosts():
            pass
    except UsageError as error:
        if in_ci():
            raise
        pytest.skip(str(error))
    figures, printed = bench("network", *SMALL, "--rounds", "1", "--megabits", "200")
    (row,) = figures["rows"]
    assert 100 < row["measured_megabits"] < 220
    # 67 million bytes at 25 million bytes a second, and half of that: far more than all else, on a busy machine too.
    assert row["seconds_a_step"]["fp32"] > 2.5
    assert row["seconds_a_step"]["bf16"] > 1.2
    assert "is the all-reduce" in printed
