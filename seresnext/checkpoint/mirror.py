"""The mirror of a run: copies of the checkpoints at an address away from the machine (`checkpoint.mirror`).

A start first looks who owns the address, may fetch a checkpoint, and owns the address once the start is accepted. From
then on a thread has each saved checkpoint uploaded by another process. A failure is reported and stops nothing.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from seresnext.checkpoint import store
from seresnext.checkpoint.mirror_files import RUN_ID, MirrorFiles, Owner, Upload
from seresnext.errors import CheckpointError, Failure, UsageError
from seresnext.files import read_small_json, write_atomically
from seresnext.process.signals import block_stop_signals
from seresnext.remote import pause, reason_of, retry

T = TypeVar("T")

NAME = "mirror.json"  # the file of the run folder with the id of the run

REPORT_ATTEMPT = 3  # A failed upload is reported at this attempt, or at once if another attempt would not help.
UPLOAD_SECONDS, UPLOAD_SPEED = 120, 1 << 20  # An attempt may take so many seconds, and one for so many bytes.
END_SECONDS = 300.0  # that the end of a run waits for the last upload


class Mirror:
    """The mirror of one run folder, on rank 0.

    `report` prints a line, `on_upload` gets the step of each upload. Raises UsageError for an address that cannot be
    used.
    """

    report: Callable[[str], None] = staticmethod(print)
    on_upload: Callable[[int], None] = staticmethod(lambda step: None)

    def __init__(self, address: str, folder: Path) -> None:
        self._files = MirrorFiles(address)
        self.address = self._files.address
        self._folder = folder
        self._run = uuid.uuid4().hex
        self._replaceable: set[str] = set()  # the runs that this start may find at the address
        self._owner: Owner | None = None  # the owner that `look` found, then this start
        self._fetched: Upload | None = None
        self._changed = threading.Condition()
        self._waiting: dict[str, Any] | None = None
        self._is_closing = self._gives_up = False
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        self._count = 0
        self._sent = self._uploaded = -1  # steps
        self._best: int | None = None  # the step of the best checkpoint that was uploaded

    # ------------------------------------------------------------------------------------------------ start

    def look(self, *, starts_over: bool, adopts: bool) -> None:
        """Find out who owns the address, and change nothing.

        A folder without an id `adopts` the run at the address, or else is another run. Raises UsageError if the address
        belongs to another run, unless the run `starts_over`. Raises Failure if the address cannot be reached.
        """
        owner = self._owner = self._attempt(self._files.newest_owner)
        known = {} if starts_over else read_small_json(self._folder / NAME)
        if RUN_ID.fullmatch(str(known.get("run"))):
            self._run = known["run"]
        elif owner and adopts and not starts_over:
            self._run = owner.run
        self._replaceable = {self._run, owner.run} if owner and starts_over else {self._run}
        self._check(owner)

    def fetch(self, checkpoints: Path, beyond: int) -> Path | None:
        """Download the newest valid checkpoint of a later step than `beyond`, if any, and return the path.

        Damaged ones are passed over with a warning. Raises CheckpointError if all are damaged and `beyond` is -1.
        """
        uploads = [one for one in self._uploads() if one.step > beyond]
        for upload in reversed(uploads):
            if path := self._receive(checkpoints, upload):
                self._fetched = upload
                self.report(f"fetched the checkpoint of step {upload.step} from {self.address}")
                return path
        if uploads and beyond < 0:
            raise CheckpointError(
                f"none of the {len(uploads)} checkpoints in {self.address} is valid; resume a run folder that has a "
                "valid one, or start from the beginning with --resume never"
            )
        return None

    def fetch_step(self, checkpoints: Path, step: int) -> Path | None:
        """Download the checkpoint of a step, if the mirror has a valid one, and return the path."""
        uploads = [one for one in self._uploads() if one.step == step]
        return next(filter(None, (self._receive(checkpoints, one) for one in reversed(uploads))), None)

    def claim(self, step: int, checkpoint: Path | None) -> None:
        """Own the address from now on, for a start at a step, from a checkpoint. Older starts then upload nothing.

        The metrics of a fetched checkpoint come along. A checkpoint that the mirror lacks is uploaded. Raises
        UsageError if another run took the address meanwhile.
        """
        write_atomically(self._folder / NAME, json.dumps({"run": self._run, "address": self.address}, indent=2) + "\n")
        self._owner = self._attempt(lambda: self._files.claim(self._run, step, self._check))
        if self._fetched:
            self._fetch_texts(self._fetched)
        if checkpoint and all(one.step != step for one in self._uploads()):
            self.put(checkpoint, step, best=None, keep=10**9, keep_every=None)

    def _check(self, owner: Owner | None) -> None:
        if owner and owner.run not in self._replaceable:
            raise UsageError(
                f"checkpoint.mirror {self.address} belongs to another run ({owner.run}, started by {owner.by}) than "
                f"{self._folder}; give another address, or start a new run there with --resume never"
            )

    def _uploads(self) -> list[Upload]:
        owner = self._owner
        return self._attempt(lambda: self._files.uploads(owner)) if owner and owner.run == self._run else []

    def _receive(self, checkpoints: Path, upload: Upload) -> Path | None:
        """Download a checkpoint and return the path. Return None, with a warning, if the checkpoint is damaged."""

        def download(write: Callable[[bytes], object]) -> None:
            self._files.download(self._run, self._files.manifest(self._run, upload), write)

        try:
            return self._attempt(lambda: store.receive(checkpoints, upload.step, download))
        except CheckpointError as error:
            self.report(f"warning: {self.address} has a damaged checkpoint of step {upload.step}: {error}")
            return None

    def _fetch_texts(self, upload: Upload) -> None:
        """Write the metrics and the states of trackers, so that curves and the run of a service continue."""
        try:
            for name, text in self._files.manifest(self._run, upload).get("texts", {}).items():
                if re.fullmatch(r"metrics\.jsonl|trackers/\w+\.json", name):
                    path = self._folder / name
                    path.parent.mkdir(exist_ok=True)
                    write_atomically(path, text)
        except Exception as error:  # The run has all numbers without the file.
            self.report(f"warning: metrics.jsonl cannot be fetched from {self.address} ({reason_of(error)})")

    def _attempt(self, action: Callable[[], T]) -> T:
        problem, final = f"checkpoint.mirror {self.address} cannot be used", "check the address and the credentials"
        other = "check the server, or train without the mirror: --set checkpoint.mirror=null"
        return retry(action, problem, (UsageError, final), (Failure, other))

    # ------------------------------------------------------------------------------------------------ uploads

    def put(self, path: Path, step: int, *, best: int | None, keep: int, keep_every: int | None) -> None:
        """Have a checkpoint uploaded, and return at once. An older one that waits is dropped.

        `MirrorFiles.prune` explains the other arguments.
        """
        with self._changed:
            self._sent, self._count = step, self._count + 1
            self._waiting = {
                "path": str(path), "folder": str(self._folder), "step": step, "best": best,
                "keep": keep, "keep_every": keep_every, "number": self._count, "address": self.address,
                "owner": self._owner, "parent": os.getpid(),
            }  # fmt: skip
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._upload_all, name="mirror", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Wait for the last upload, END_SECONDS at most, and report whether the address has the last checkpoint."""
        if self._thread is None:
            return
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        began = time.monotonic()
        self._thread.join(1)
        if self._thread.is_alive():
            self.report(f"waiting for the upload of the checkpoint of step {self._sent} to {self.address}")
            self._thread.join(END_SECONDS)
        with self._changed:
            self._gives_up = True
            self._changed.notify()
        if self._process:
            self._process.kill()
        self._thread.join(1)
        if self._uploaded == self._sent:
            self.report(f"{self.address} has the checkpoint of step {self._sent}")
        elif self._owner:
            self.report(
                f"warning: {self.address} lacks the checkpoint of step {self._sent}, since the upload did not end "
                f"within {time.monotonic() - began:.0f} s; the same command uploads the checkpoint"
            )

    def _upload_all(self) -> None:
        """Upload the newest checkpoint that waits, until the end or until a newer start owns the address."""
        attempt, reported = 0, None  # the kind of the problem that was reported last
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                request, self._waiting = self._waiting, None
            if request is None or self._gives_up:
                return
            attempt += 1
            is_new = request["best"] not in (None, request["step"], self._best)
            request["best_path"] = str(Path(request["path"]).with_name("best.safetensors")) if is_new else None
            result = self._upload(request)
            is_uploaded, problem = result["uploaded"], result.get("problem")
            if not is_uploaded and not Path(request["path"]).exists():
                continue  # The run has removed the file, because a newer one waits.
            kind = is_uploaded, "is_fenced" in result
            if problem and kind != reported and (is_uploaded or result["is_final"] or attempt >= REPORT_ATTEMPT):
                reported = kind
                step = f"the checkpoint of step {request['step']}"
                lacks = "the best checkpoint, or keeps old ones" if is_uploaded else step
                self.report(f"warning: {self.address} lacks {lacks}: {problem}; training continues")
            if "is_fenced" in result:
                self._owner = None
                return
            if not is_uploaded:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._gives_up, pause(attempt))
                    self._waiting = self._waiting or request
                continue
            if not problem:
                if reported:
                    self.report(f"uploads to {self.address} succeed again")
                reported, self._best = None, request["best"]
            attempt, self._uploaded = 0, request["step"]
            self.on_upload(self._uploaded)

    def _upload(self, request: dict[str, Any]) -> dict[str, Any]:
        """Upload a checkpoint in another process. Return the result of `mirror_files.perform`."""
        failure = {"uploaded": False, "is_final": False}
        try:
            seconds = UPLOAD_SECONDS + Path(request["path"]).stat().st_size / UPLOAD_SPEED
            with block_stop_signals():  # The end of the run decides how long an upload may take.
                process = self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "seresnext.checkpoint.mirror_files", json.dumps(request)],
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                )  # fmt: skip
            with process:
                try:
                    output, _ = process.communicate(timeout=seconds)
                except subprocess.TimeoutExpired:
                    process.kill()
                    return failure | {"problem": f"no end of the transfer within {seconds:.0f} s"}
        except OSError as error:
            return failure | {"problem": str(error)}
        last = output.strip().rpartition("\n")[2]
        return json.loads(last) if process.returncode == 0 else failure | {"problem": last or "the transfer was killed"}
