"""The files of a mirror, in a folder and in a bucket: uploads that count, owners of the address, removal."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fsspec
import pytest
from mirrors import OTHER, RUN, add, content, own, save

from seresnext.checkpoint import mirror_files, store
from seresnext.checkpoint.mirror_files import Fenced, MirrorFiles, Owner, Upload
from seresnext.errors import CheckpointError, UsageError


def names(address: str) -> set[str]:
    """Return the names of all files, read by fsspec alone."""
    files, root = fsspec.core.url_to_fs(address)
    files.invalidate_cache()
    return {path.removeprefix(f"{root}/") for path in files.find(root)}


def change(address: str, name: str, edit: Callable[[bytes], bytes] | None) -> None:
    """Change the content of a file, or remove the file."""
    files, path = fsspec.core.url_to_fs(f"{address}/{name}")
    if edit:
        files.pipe_file(path, edit(files.cat_file(path)))
    else:
        files.rm_file(path)


# ------------------------------------------------------------------------------------------------ uploads


def test_an_upload_has_a_manifest_and_comes_back_bit_for_bit(address: str, tmp_path: Path):
    path = save(tmp_path, 40)
    (tmp_path / "metrics.jsonl").write_text('{"step": 40}\n')
    files, owner = own(address)
    upload = add(files, owner, 1, path, tmp_path)
    stem = f"{RUN}/step-00000040-000001-0001"
    assert names(address) == {"owners/000001.json", f"{stem}.json", f"{stem}.safetensors"}
    manifest = json.loads(fsspec.open(f"{address}/{stem}.json").open().read())
    assert manifest["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (manifest["run"], manifest["owner"], manifest["step"]) == (RUN, 1, 40)
    assert manifest["texts"] == {"metrics.jsonl": '{"step": 40}\n'}
    assert files.uploads(owner) == [upload]
    assert content(files, RUN, upload) == path.read_bytes()


HARMS = {
    "flipped": ("safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    "truncated": ("safetensors", lambda data: data[:-1]),
    "missing": ("safetensors", None),
    "half a manifest": ("json", lambda text: text[: len(text) // 2]),
    "no manifest": ("json", None),  # As after a kill in the middle of an upload.
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_half_or_corrupt_does_not_count(address: str, tmp_path: Path, harm: str):
    files, owner = own(address)
    upload = add(files, owner, 1, save(tmp_path, 40))
    assert content(files, RUN, upload)  # The control.
    ending, edit = HARMS[harm]
    change(address, f"{RUN}/{upload.name}.{ending}", edit)
    assert files.uploads(owner) == [upload] * (harm != "no manifest")
    with pytest.raises(CheckpointError, match=r"manifest|readable|missing"):
        content(files, RUN, upload)


def test_a_store_that_loses_bytes_gets_no_manifest(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files, owner = own(address)
    path, download = save(tmp_path, 40), MirrorFiles.download

    def lossy(self: MirrorFiles, run: str, entry: dict[str, Any], write: Any) -> None:
        change(address, f"{run}/{entry['file']}", lambda data: data[:-1])
        download(self, run, entry, write)

    monkeypatch.setattr(MirrorFiles, "download", lossy)
    with pytest.raises(CheckpointError, match="does not have the digest"):
        add(files, owner, 1, path)
    assert files.uploads(owner) == []
    monkeypatch.undo()
    upload = add(files, owner, 1, path)  # The control: the next attempt.
    assert files.uploads(owner) == [upload]


# ------------------------------------------------------------------------------------------------ owners


def test_a_newer_owner_fences_the_older(address: str, tmp_path: Path):
    files, old = own(address)
    first = add(files, old, 1, save(tmp_path, 10))  # The control: alone at the address.
    _, new = own(address, step=10)
    with pytest.raises(Fenced, match=r"process \d+ on "):
        add(files, old, 2, save(tmp_path, 20))
    add(files, new, 1, save(tmp_path, 11))
    assert [one.step for one in files.uploads(new)] == [first.step, 11]
    add(files, new, 2, save(tmp_path, 5))
    with pytest.raises(Fenced):
        files.prune(old, Upload(20, 1, 9), keep=1, keep_every=None, best=None)
    assert [one.step for one in files.uploads(new)] == [5, 10, 11]


def test_an_owner_that_comes_during_an_upload_fences_it(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """There is no manifest, and the next owner removes the rest."""
    files, old = own(address)
    download = MirrorFiles.download

    def slow(self: MirrorFiles, *arguments: Any) -> None:
        download(self, *arguments)
        monkeypatch.undo()
        own(address, step=0)

    monkeypatch.setattr(MirrorFiles, "download", slow)
    with pytest.raises(Fenced):
        add(files, old, 1, save(tmp_path, 10))
    assert f"{RUN}/step-00000010-000001-0001.safetensors" in names(address)
    new = files.newest_owner()
    assert new
    files.prune(new, add(files, new, 1, save(tmp_path, 5)), keep=3, keep_every=None, best=None)
    assert {name for name in names(address) if "step" in name} == {
        f"{RUN}/step-00000005-000002-0001.{ending}" for ending in ("json", "safetensors")
    }


def test_of_two_starts_at_once_each_gets_a_number(address: str, monkeypatch: pytest.MonkeyPatch):
    """The second start has read the address before the first claimed the number, and the store refuses the number."""
    own(address)
    newest, answers = MirrorFiles.newest_owner, [None]
    monkeypatch.setattr(MirrorFiles, "newest_owner", lambda self: answers.pop() if answers else newest(self))
    _, second = own(address, OTHER)
    assert (second.number, answers) == (2, [])


def test_the_object_of_an_owner_is_gone(address: str, tmp_path: Path):
    """As when another disk is mounted: nothing is uploaded."""
    files, owner = own(address)
    change(address, "owners/000001.json", None)
    with pytest.raises(OSError, match=r"owners/000001\.json is gone"):
        add(files, owner, 1, save(tmp_path, 10))


@pytest.mark.parametrize("text", [b"", b"[]", b'{"run": "../x", "starts": [], "by": ""}', b'{"run": 1}'])
def test_an_owner_that_cannot_be_read(address: str, text: bytes):
    files, _ = own(address)
    change(address, "owners/000001.json", lambda _: text)
    with pytest.raises(OSError, match=r"owners/000001\.json is not readable"):
        files.newest_owner()


def test_steps_that_a_newer_start_repeats_do_not_count(address: str, tmp_path: Path):
    """Two machines trained on; the run then began again at step 20. Uploads of the old starts stay, uncounted."""
    files, first = own(address)
    for number, step in enumerate((10, 20, 30), 1):
        add(files, first, number, save(tmp_path, step))
    _, second = own(address, step=20)
    assert [(one.step, one.owner) for one in files.uploads(second)] == [(10, 1), (20, 1)]
    add(files, second, 1, save(tmp_path, 30))
    _, third = own(address, step=30)
    assert [(one.step, one.owner) for one in files.uploads(third)] == [(10, 1), (20, 1), (30, 2)]
    files.prune(third, Upload(30, 3, 1), keep=1, keep_every=None, best=None)
    assert [(one.step, one.owner) for one in files.uploads(third)] == [(30, 2)]
    assert f"{RUN}/step-00000030-000001-0003.json" in names(address)


# ------------------------------------------------------------------------------------------------ removal


@pytest.mark.parametrize(("keep", "keep_every", "best"), [(1, None, None), (2, 3, 1), (3, 2, 4), (9, None, 2)])
def test_the_mirror_keeps_what_the_run_folder_keeps(tmp_path: Path, keep: int, keep_every: int | None, best: int):
    local = tmp_path / "local"
    files, owner = own(str(tmp_path / "mirror"))
    for number, step in enumerate(range(1, 8), 1):
        path = save(local, step)
        add(files, owner, 2 * number - 1, path)
        new = add(files, owner, 2 * number, path)  # A new best is saved twice.
        if step == best:
            store.update_link(local, "best", path)
        store.prune(local, keep, keep_every)
        files.prune(owner, new, keep, keep_every, best if best and step >= best else None)
        expected = {*store.steps(local), *([best] if best and step >= best else [])}
        assert {one.step for one in files.uploads(owner)} == expected
        assert all(one.number % 2 == 0 for one in files.uploads(owner))
    assert len(names(str(tmp_path / "mirror"))) == 2 * len(files.uploads(owner)) + 1


# ------------------------------------------------------------------------------------------------ requests


@pytest.fixture
def mirror(tmp_path: Path) -> tuple[MirrorFiles, Owner]:
    return own(str(tmp_path / "mirror"))


def request_for(mirror: tuple[MirrorFiles, Owner], path: Path, **more: Any) -> dict[str, Any]:
    """Return a request as it comes from the training, in JSON."""
    files, owner = mirror
    values = {"address": files.address, "owner": owner, "path": str(path), "folder": "none", "number": 1, "keep": 1}
    usual = {"step": int(store.verify(path)["step"]), "keep_every": None, "best": None, "best_path": None}
    return json.loads(json.dumps({**values, **usual, **more}))


def test_a_checkpoint_and_the_best_are_there_and_old_ones_go(mirror, tmp_path: Path):
    files, owner = mirror
    old, best, new = (save(tmp_path, step) for step in (1, 2, 3))
    assert mirror_files.perform(request_for(mirror, old)) == {"uploaded": True}
    store.update_link(tmp_path, "best", best)
    more = {"number": 2, "best": 2, "best_path": str(tmp_path / "best.safetensors")}
    assert mirror_files.perform(request_for(mirror, new, **more)) == {"uploaded": True}
    assert files.uploads(owner) == [Upload(2, 1, 2), Upload(3, 1, 2)]
    assert [content(files, owner.run, one) for one in files.uploads(owner)] == [best.read_bytes(), new.read_bytes()]


def test_a_newer_owner(mirror, tmp_path: Path):
    own(mirror[0].address)
    result = mirror_files.perform(request_for(mirror, save(tmp_path, 1)))
    assert result.items() >= {"uploaded": False, "is_final": True, "is_fenced": True}.items()
    assert "a newer owner, process " in result["problem"]


def test_failures_are_results(mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted = request_for(mirror, save(tmp_path, 1))
    for error, is_final in ((PermissionError("denied by s3://bucket"), True), (OSError("reset"), False)):
        with monkeypatch.context() as patch:
            patch.setattr(MirrorFiles, "upload", Mock(side_effect=error))
            reason = "denied by (address)" if is_final else "reset"
            assert mirror_files.perform(wanted) == {"uploaded": False, "problem": reason, "is_final": is_final}
    with monkeypatch.context() as patch:
        patch.setattr(MirrorFiles, "prune", Mock(side_effect=PermissionError("no removal")))
        assert mirror_files.perform(wanted) == {"uploaded": True, "problem": "no removal", "is_final": True}
    with monkeypatch.context() as patch:
        patch.setattr(MirrorFiles, "upload", Mock(side_effect=TypeError("a bug")))
        with pytest.raises(TypeError):
            mirror_files.perform(wanted)
    gone = {**wanted, "address": str(tmp_path / "no" / "mirror")}
    assert "there is no folder" in mirror_files.perform(gone)["problem"]


# ------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("https://host/x", r"give s3://\.\.\., gs://\.\.\. or a folder"),
        ("s3://key:secret@bucket/x", "give credentials in the environment"),
        ("s3://bucket/x?token=secret", "give credentials in the environment"),
        ("/no/such/disk/run", "there is no folder /no/such/disk; make or mount the folder"),
    ],
)
def test_an_address_that_cannot_be_used(wrong: str, message: str):
    with pytest.raises(UsageError, match=message) as caught:
        MirrorFiles(wrong)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("kind", "package"), [("s3://bucket/x", "s3fs"), ("gs://bucket/x", "gcsfs"), ("x", "fsspec")])
def test_without_the_extra(without, kind: str, package: str):
    without(package)
    with pytest.raises(UsageError, match=re.escape(f'has no {package}; run `pip install "seresnext[remote]"`')):
        MirrorFiles(kind)


def test_the_process_that_uploads_does_not_import_torch():
    code = "import seresnext.checkpoint.mirror_files, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
