"""train.py with a narrow network and a disturbance: `tests/disturbed.py PART RANK SECONDS train.py's arguments`.

PART is `data` (each batch of the rank takes so many seconds longer), `computing` (each forward pass does), `none`, or
`spoilt`: the labels of step 141 are wrong, and the batches from step 151 on take so many seconds longer.
"""

import os
import sys
import time


def change(owner, name, action):
    """Let an action change the argument of a method."""
    function = getattr(owner, name)
    setattr(owner, name, lambda self, batch: function(self, action(batch)))


def main(part, rank, seconds, *arguments):
    from exactness import narrow

    from seresnext import cli
    from seresnext.data.batches import TrainImages
    from seresnext.models import SENet, registry
    from seresnext.process.signals import StopRequest
    from seresnext.training.step import TrainingStep

    def delay(batch):
        if part != "spoilt" or batch.step >= 150:
            time.sleep(float(seconds))
        return batch

    def spoil(batch):
        return batch._replace(labels=(batch.labels + 1) % 3) if batch.step == 140 else batch

    registry.create_model = narrow
    if rank == os.environ.get("RANK", "0"):
        if part in ("data", "spoilt"):
            change(TrainImages, "make", delay)
        if part == "computing":
            change(SENet, "forward_features", delay)
        if part == "spoilt":
            change(TrainingStep, "_forward_backward", spoil)
    with StopRequest() as stop:
        return cli.main(["train", *arguments], stop)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
