"""The download of a published file: resumed, checked by the SHA-256 in the name, and complete or not there."""

import fcntl
import hashlib
import http.client
import os
import sys
import threading
from concurrent.futures import Future
from io import BufferedRandom
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from seresnext.progress import progress

_ANSWER_SECONDS = 5.0  # until the headers of the answer are there
_SILENT_SECONDS = 30.0  # without a byte of the content
_MOST_BYTES = 1 << 30
_CHUNK = 1 << 20


def download(url: str, folder: Path) -> Path:
    """Return the path of a complete file in a folder, after a download if the file is not there.

    The name is the last part of the address, such as `model-65ebdb501.pth`. The content must have the SHA-256 that
    begins with the digits in the name. Of several processes, one downloads and the others wait. After an
    interruption, the next call resumes the download. Raises OSError.
    """
    path = folder / url.rpartition("/")[2]
    part = folder / f".{path.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    while not path.exists():
        with part.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _has_name(file, part):  # Another process has completed or removed the part.
                continue
            try:
                _complete(url, file, path)
                os.fsync(file.fileno())
                part.replace(path)
            finally:
                if not file.seek(0, os.SEEK_END):
                    part.unlink()
    return path


def sha256_in_name(path: Path) -> str:
    """Return the first digits of the SHA-256 in the name of a published file."""
    return path.stem.rpartition("-")[2]


def _has_name(file: BufferedRandom, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _complete(url: str, file: BufferedRandom, path: Path) -> None:
    """Download the rest of a file. After a broken connection, try again as long as the file grows."""
    while True:
        start = file.seek(0, os.SEEK_END)
        try:
            _append(url, file, path.name)
        except HTTPError as error:
            error.close()
            if error.code != 416 or not start:  # Range not satisfiable: nothing is missing.
                raise
        except (OSError, http.client.HTTPException) as error:
            if file.seek(0, os.SEEK_END) <= start:
                raise error if isinstance(error, OSError) else OSError(repr(error)) from None
            continue
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest.startswith(sha256_in_name(path)):
            return
        file.truncate(0)
        if not start:  # A resumed file may have parts of two contents.
            raise OSError(f"the content has another SHA-256: {digest}")


def _append(url: str, file: BufferedRandom, label: str) -> None:
    start = file.tell()
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with _open(request) as answer:
        if answer.status != http.client.PARTIAL_CONTENT:
            start = file.truncate(0)  # A server without ranges starts over.
        total = start + int(answer.headers["Content-Length"] or _MOST_BYTES)
        print(f"download {url}", file=sys.stderr)
        with progress(label, total, "B") as advance:
            advance(start)
            while (chunk := answer.read(_CHUNK)) and file.tell() < _MOST_BYTES:
                file.write(chunk)
                file.flush()
                advance(len(chunk))
    if "Content-Length" in answer.headers and file.tell() != total:
        raise OSError(f"the connection ended after {file.tell():,} of {total:,} bytes")


def _open(request: Request) -> http.client.HTTPResponse:
    """Return the answer of a server. Raises OSError, also if there is no answer in time.

    No timeout of a socket covers a name server that is silent, hence the thread.
    """
    answer: Future[http.client.HTTPResponse] = Future()

    def ask() -> None:
        try:
            answer.set_result(urlopen(request, timeout=_SILENT_SECONDS))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(_ANSWER_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"no answer in {_ANSWER_SECONDS:.0f} s") from None
