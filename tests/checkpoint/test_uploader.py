"""One upload: its result, also when the store fails, without an exception."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mirrors import content, own, save

from seresnext.checkpoint import store, uploader
from seresnext.checkpoint.mirror_files import MirrorFiles, Owner, Upload
from seresnext.weights.safetensors_file import read_header


@pytest.fixture
def mirror(tmp_path: Path) -> tuple[MirrorFiles, Owner]:
    return own(str(tmp_path / "mirror"))


def request(mirror: tuple[MirrorFiles, Owner], path: Path, **more: Any) -> dict[str, Any]:
    """Return a request as it comes from the training, in JSON."""
    files, owner = mirror
    values = {"address": files.address, "owner": owner, "path": str(path), "metrics": "none", "number": 1, "keep": 1}
    usual = {"step": int(store.verify(path)["step"]), "keep_every": None, "best": None, "best_path": None}
    return json.loads(json.dumps({**values, **usual, **more}))


def test_a_checkpoint_and_the_best_are_there_and_old_ones_go(mirror, tmp_path: Path):
    files, owner = mirror
    old, best, new = (save(tmp_path, step) for step in (1, 2, 3))
    assert uploader.perform(request(mirror, old)) == {"size": old.stat().st_size}
    store.update_link(tmp_path, "best", best)
    more = {"number": 2, "best": 2, "best_path": str(tmp_path / "best.safetensors")}
    assert uploader.perform(request(mirror, new, **more)) == {"size": new.stat().st_size}
    assert files.uploads(owner) == [Upload(2, 1, 2), Upload(3, 1, 2)]
    assert [content(files, owner.run, one) for one in files.uploads(owner)] == [best.read_bytes(), new.read_bytes()]


def test_the_step_is_read_without_torch(tmp_path: Path):
    path = save(tmp_path, 123)
    assert str(uploader._step_in(path)) == read_header(path)["step"] == "123"


def test_a_newer_owner(mirror, tmp_path: Path):
    own(mirror[0].address)
    assert uploader.perform(request(mirror, save(tmp_path, 1)))["fenced"].startswith("process ")


def test_failures_are_results(mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted = request(mirror, save(tmp_path, 1))
    for error, is_final in ((PermissionError("denied by s3://bucket"), True), (OSError("reset"), False)):
        with monkeypatch.context() as patch:
            patch.setattr(MirrorFiles, "upload", raising(error))
            reason = "denied by (address)" if is_final else "reset"
            assert uploader.perform(wanted) == {"failed": reason, "is_final": is_final}
    with monkeypatch.context() as patch:
        patch.setattr(MirrorFiles, "prune", raising(PermissionError("no removal")))
        assert uploader.perform(wanted)["incomplete"] == "no removal"
    with monkeypatch.context() as patch:
        patch.setattr(MirrorFiles, "upload", raising(TypeError("a bug")))
        with pytest.raises(TypeError):
            uploader.perform(wanted)
    gone = {**wanted, "address": str(tmp_path / "no" / "mirror")}
    assert "there is no folder" in uploader.perform(gone)["failed"]


def raising(error: Exception) -> Any:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    return fail
