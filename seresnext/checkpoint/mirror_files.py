"""The files of a mirror: the place away from the machine that has copies of a run's checkpoints.

    owners/000003.json                              the third start at this address
    <run id>/step-00000040-000003-0002.safetensors  the second upload of start 3: the checkpoint of step 40
    <run id>/step-00000040-000003-0002.json         the manifest, written after the upload was read back

The start with the highest number owns the address. Each name has the number of a start, so an older start that still
runs replaces no file of a newer start. An upload without a manifest does not count. An upload of an older start does
not count either if a newer start of the run began at an earlier step, because the newer start repeats that step.

The process that uploads (`python -m seresnext.checkpoint.mirror_files REQUEST`) imports no torch. A process of its own
cannot slow down the training, and the training kills a process that takes too long. Failures of a server raise
the errors of fsspec's libraries.
"""

import hashlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from seresnext.errors import CheckpointError, UsageError, printable
from seresnext.files import is_remote
from seresnext.process.packages import require_extra
from seresnext.process.signals import die_with_parent
from seresnext.remote import BUGS, PACKAGES, file_system, is_final, reason_of, refuse_secrets

_CHUNK = 16 << 20  # bytes
RUN_ID = re.compile(r"[0-9a-f]{32}")
_UPLOAD_NAME = re.compile(r"step-([0-9]{8,18})-([0-9]{6})-([0-9]{4,18})\.(json|safetensors)")


class Fenced(Exception):
    """The loss of an address to a newer start, which the message names."""


class Owner(NamedTuple):
    """A start that owns an address. `starts` lists all starts of the run: number, and step at which a start began."""

    number: int
    run: str
    starts: list[list[int]]
    by: str


class Upload(NamedTuple):
    """A checkpoint in a mirror: the `number`-th upload of the start `owner`. Of two of one step the later is larger."""

    step: int
    owner: int
    number: int

    @property
    def name(self) -> str:
        """The name of the two files, without the ending."""
        return f"step-{self.step:08d}-{self.owner:06d}-{self.number:04d}"


class MirrorFiles:
    """The files at one address: `s3://...`, `gs://...` or a folder. Raises UsageError for another address."""

    def __init__(self, address: str) -> None:
        self._scheme = urlsplit(address).scheme if is_remote(address) else "file"
        if self._scheme not in ("file", "s3", "gs"):
            problem = f"checkpoint.mirror {printable(address)} is an address of an unknown kind"
            raise UsageError(f"{problem}; give s3://..., gs://... or a folder")
        require_extra("remote", "fsspec", *PACKAGES[self._scheme])
        self.address = address.rstrip("/")
        if self._scheme == "file":
            self.address = os.path.abspath(address)  # noqa: PTH100 (removes `..`)
            if not Path(self.address).parent.is_dir():  # as without the mount of another disk
                folder = Path(self.address).parent
                raise UsageError(f"checkpoint.mirror {address}: there is no folder {folder}; make or mount the folder")
        else:
            refuse_secrets(address, "checkpoint.mirror")

    def newest_owner(self) -> Owner | None:
        """Return the owner of the address, or None if no run was here. Raises OSError for an unreadable owner."""
        numbers = self._owners()
        if not numbers:
            return None
        name = _owner_name(numbers[-1])
        try:
            values = json.loads(self._files.cat_file(self._url(name)))
            if not RUN_ID.fullmatch(values["run"]):
                raise ValueError
            starts = [[int(number), int(step)] for number, step in values["starts"]]
            return Owner(numbers[-1], values["run"], starts, printable(values["by"]))
        except (ValueError, TypeError, KeyError):
            raise OSError(f"{name} is not readable") from None

    def claim(self, run: str, step: int, check: Callable[[Owner | None], None]) -> Owner:
        """Own the address, for a start of a run at a step. `check` gets the owner before, and raises to refuse.

        The store creates an object only if there is none of the name: of two starts at once, one tries the next number.
        """
        by = f"process {os.getpid()} on {socket.gethostname()}"
        while True:
            before = self.newest_owner()
            check(before)
            number = before.number + 1 if before else 1
            starts = [*(before.starts if before and before.run == run else []), [number, step]]
            with suppress(FileExistsError):
                with self._files.open(self._url(_owner_name(number)), "xb") as file:
                    file.write(json.dumps({"run": run, "starts": starts, "by": by}).encode())
                return Owner(number, run, starts, by)

    def check_owner(self, owner: Owner) -> None:
        """Raise Fenced if a newer start owns the address, and OSError if the object of this owner is gone."""
        numbers = self._owners()
        if owner.number not in numbers:
            raise OSError(f"{_owner_name(owner.number)} is gone")
        if numbers[-1] > owner.number and (newest := self.newest_owner()):
            raise Fenced(newest.by)

    def uploads(self, owner: Owner) -> list[Upload]:
        """Return the uploads of the owner's run that count, in the order of the steps."""
        starts = owner.starts
        listed = self._listed(owner.run, "json")
        return [one for one in listed if all(one.step <= step for number, step in starts if number > one.owner)]

    def upload(self, owner: Owner, new: Upload, checkpoint: Path, folder: Path) -> None:
        """Upload a checkpoint, which is read back and compared. Raises CheckpointError, and Fenced for a newer owner.

        The manifest comes last, with the metrics and the states of trackers (metrics/follow.py) in the run folder.
        """
        self.check_owner(owner)
        name, digest = f"{new.name}.safetensors", hashlib.sha256()
        with checkpoint.open("rb") as source, self._files.open(self._url(f"{owner.run}/{name}"), "wb") as target:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                target.write(chunk)
            if self._scheme == "file":
                target.flush()
                os.fsync(target.fileno())
            manifest = {"file": name, "size": source.tell(), "sha256": digest.hexdigest()}
        self.download(owner.run, manifest, lambda chunk: None)
        manifest |= {"run": owner.run, "owner": owner.number, "step": new.step}
        texts = [path for path in (folder / "metrics.jsonl", *folder.glob("trackers/*.json")) if path.is_file()]
        manifest["texts"] = {str(path.relative_to(folder)): path.read_text(errors="replace") for path in texts}
        self.check_owner(owner)
        self._files.pipe_file(self._url(f"{owner.run}/{new.name}.json"), json.dumps(manifest, indent=2).encode())

    def manifest(self, run: str, upload: Upload) -> dict[str, Any]:
        """Return the manifest: `file`, `size`, `sha256`, and `texts` by name. Raises CheckpointError."""
        try:
            values = json.loads(self._files.cat_file(self._url(f"{run}/{upload.name}.json")))
        except (ValueError, FileNotFoundError) as error:
            raise CheckpointError(f"{upload.name}.json is not readable") from error
        return values if isinstance(values, dict) else {}

    def download(self, run: str, manifest: dict[str, Any], write: Callable[[bytes], object]) -> None:
        """Pass the chunks of a checkpoint to `write`. Raises CheckpointError."""
        name, digest = str(manifest.get("file")).rpartition("/")[2], hashlib.sha256()
        try:
            with self._files.open(self._url(f"{run}/{name}"), "rb", cache_type="none") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    write(chunk)
        except FileNotFoundError as error:
            raise CheckpointError(f"{printable(name)} is missing") from error
        if digest.hexdigest() != manifest.get("sha256"):
            raise CheckpointError(f"{printable(name)} does not have the digest of the manifest")

    def prune(self, owner: Owner, newest: Upload, keep: int, keep_every: int | None, best: int | None) -> None:
        """Remove all but the newest `keep` steps, every `keep_every`-th and the best. Of a step one upload stays.

        Unfinished uploads are removed, too. Uploads that do not count stay.
        """
        uploads = self.uploads(owner)
        latest = {one.step: one for one in uploads}
        stay = {*list(latest)[-keep:], best} | {step for step in latest if keep_every and step % keep_every == 0}
        gone = [one for one in uploads if one.step not in stay or latest[one.step] != one]
        unfinished = {*self._listed(owner.run, "safetensors")} - {*self._listed(owner.run, "json")}
        gone += [one for one in unfinished if one[1:] < newest[1:]]  # one[1:] is the order in time
        if gone:
            self.check_owner(owner)
        for name in [f"{one.name}.{ending}" for one in gone for ending in ("json", "safetensors")]:
            with suppress(FileNotFoundError):
                self._files.rm_file(self._url(f"{owner.run}/{name}"))

    # ------------------------------------------------------------------------------------------------ helpers

    @property
    def _files(self) -> Any:
        files = file_system(self._scheme)  # fsspec keeps one instance of a scheme,
        files.invalidate_cache()  # and the instance keeps listings. Other machines change the files.
        return files

    def _url(self, name: str) -> str:
        return f"{self.address}/{name}"

    def _names(self, folder: str) -> list[str]:
        try:
            return [path.rpartition("/")[2] for path in self._files.ls(self._url(folder), detail=False)]
        except FileNotFoundError:
            return []

    def _owners(self) -> list[int]:
        return sorted(int(name[:6]) for name in self._names("owners") if re.fullmatch(r"[0-9]{6}\.json", name))

    def _listed(self, run: str, ending: str) -> list[Upload]:
        matches = filter(None, map(_UPLOAD_NAME.fullmatch, self._names(run)))
        return sorted(Upload(*map(int, match.groups()[:3])) for match in matches if match[4] == ending)


def _owner_name(number: int) -> str:
    return f"owners/{number:06d}.json"


def perform(request: dict[str, Any]) -> dict[str, Any]:
    """Upload the checkpoint of a request, and the best one if wanted, and remove old ones. Return the result.

    The result has `uploaded`: whether the checkpoint is there. After a failure, the result has the `problem` and
    `is_final`: whether another attempt would fail in the same way. `is_fenced`: a newer start owns the address.
    """
    owner, folder = Owner(*request["owner"]), Path(request["folder"])
    new = Upload(request["step"], owner.number, request["number"])
    result: dict[str, Any] = {"uploaded": False}
    try:
        files = MirrorFiles(request["address"])
        files.upload(owner, new, Path(request["path"]), folder)
        result["uploaded"] = True
        if request["best_path"]:
            best = Path(request["best_path"])
            files.upload(owner, new._replace(step=_step_in(best)), best, folder)
        files.prune(owner, new, request["keep"], request["keep_every"], request["best"])
    except Fenced as error:
        problem = f"the address has a newer owner, {error}, and this start uploads nothing more"
        result |= {"problem": problem, "is_final": True, "is_fenced": True}
    except BUGS:
        raise
    except Exception as error:
        result |= {"problem": reason_of(error), "is_final": is_final(error)}
    return result


def _step_in(path: Path) -> int:
    """Return the step in the header of a checkpoint (`file_format` has the layout)."""
    with path.open("rb") as file:
        return int(json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]["step"])


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    die_with_parent(signal.SIGKILL)
    if os.getppid() == wanted["parent"]:  # The training may have ended during the imports.
        os.nice(5)  # The training and its loader come first.
        print(json.dumps(perform(wanted)), flush=True)
    os._exit(0)  # An open connection must not delay the end.
