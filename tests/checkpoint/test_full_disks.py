"""Real disks that are full or read-only. The errors come from the kernel.

A process in a new mount namespace gets small disks in memory. The tests are skipped if the system forbids namespaces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import needs

# The program on the small disk. The output is one JSON object.
SCRIPT = """
import json, subprocess, sys
from pathlib import Path

import torch

from seresnext.checkpoint import store
from seresnext.checkpoint.contents import CheckpointMetadata
from seresnext.distributed import World
from seresnext.training.saving import Saver

folder, case = Path(sys.argv[1]), sys.argv[2]
elements, warnings = 25_000, []  # 100 kB; where the disk gets full, it has room for two of them and a bit.
saver = Saver(
    World(), folder, keep=3, continue_on_failure=case != "stops",
    tensors=lambda: {"model": {"weight": torch.ones(elements)}},
    metadata=lambda step, progress: CheckpointMetadata(step, {}, "", None, [], {}, {}, progress),
    warn=warnings.append,
)
outcomes = []
with saver:
    for step in (1, 2, 3, 4):
        if step == 3 and case == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", folder.parent], check=True)
        if step == 4 and case == "read-only":
            subprocess.run(["mount", "-o", "remount,rw", folder.parent], check=True)
        if step == 4 and case == "full":
            (folder / "step-00000001.safetensors").unlink()  # Somebody makes room.
        saver.save(step, {"best": None})
        try:
            outcomes.append(saver.wait())
        except store.SaveError as error:
            outcomes.append(str(error))
            break
        if step == 3:
            names = sorted(path.name for path in folder.iterdir())
print(json.dumps({
    "outcomes": outcomes, "warnings": warnings, "names": names if len(outcomes) > 3 else None,
    "files": sorted(path.name for path in folder.iterdir()),
    "newest": store.newest_valid(folder).path.name, "complaints": store.newest_valid(folder).warnings,
}))
"""
NAMESPACE = ["unshare", "--map-root-user", "--mount"]


def on_a_small_disk(tmp_path: Path, case: str) -> dict[str, Any]:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = "260k" if case in ("full", "stops") else "1m"
    command = f'mount -t tmpfs -o size={size} none "{disk}" && exec "$@"'
    words = ["sh", "-c", command, "sh", sys.executable, "-c", SCRIPT, disk / "checkpoints", case]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*NAMESPACE, *words], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def may_mount() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
    except OSError:
        return False


pytestmark = needs(may_mount(), "needs mount namespaces of one's own (unshare)")
OLD_ONES = ["last.safetensors", "step-00000001.safetensors", "step-00000002.safetensors"]


@pytest.mark.parametrize(
    ("case", "reason"), [("full", "No space left on device"), ("read-only", "Read-only file system")]
)
@pytest.mark.full
def test_the_old_ones_stay_and_training_goes_on(tmp_path, case, reason):
    """The third of four saves fails: no part of the file is left, the message has the reason, the fourth works."""
    report = on_a_small_disk(tmp_path, case)
    assert report["outcomes"] == [True, True, False, True]
    (warning,) = report["warnings"]
    assert f"step-00000003.safetensors could not be saved: {reason}" in warning
    assert "Training continues without this checkpoint (checkpoint.on_failure: continue)" in warning
    assert report["names"] == OLD_ONES
    assert report["newest"] == "step-00000004.safetensors"
    assert report["complaints"] == []
    assert not any(name.startswith(".") for name in report["files"])


@pytest.mark.full
def test_or_it_stops(tmp_path):
    report = on_a_small_disk(tmp_path, "stops")
    assert report["outcomes"][:2] == [True, True]
    assert "step-00000003.safetensors could not be saved: No space left on device" in report["outcomes"][2]
    assert report["files"] == OLD_ONES
    assert report["newest"] == "step-00000002.safetensors"
