"""Shards of a server, with repeated attempts."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

from seresnext.errors import DataError
from seresnext.remote import BUGS, Refused, file_system, has_secrets, is_final, reason_of, shown_url

T = TypeVar("T")

ATTEMPTS = 5
# Seconds after which there is no new attempt. `runtime.loader_timeout` (by default 600) is longer, so that the error
# message has the answer of the server.
PATIENCE = 200.0
# Longest pause before the second attempt, in seconds. Each later pause may be twice as long.
FIRST_PAUSE = 1.0

_CHUNK = 8 << 20


class Remote:
    """The files below one address. Raises DataError for an address that cannot be used."""

    def __init__(self, root: str, folder: str) -> None:
        if has_secrets(root):
            raise DataError(
                f"{shown_url(root)}: data.root has a user, a password or a query, and every checkpoint stores "
                "data.root; give credentials in the environment, ~/.netrc or the configuration of the cloud"
            )
        self._url = f"{root.rstrip('/')}/{folder}/"
        self._scheme = urlsplit(root).scheme

    def address(self, name: str) -> str:
        """Return the address of a file, for messages."""
        return self._url + name

    def read(self, name: str, most: int) -> bytes:
        """Return a file of at most `most` bytes; of a longer file, a part with more bytes. Raises DataError."""
        return self._retry(name, lambda: b"".join(self._chunks(name, most)))

    def copy(self, name: str, file: BinaryIO, sha256: str, most: int) -> None:
        """Write a file of at most `most` bytes. Raises DataError when the content has another checksum."""

        def attempt() -> None:
            digest = hashlib.sha256()
            file.seek(0)
            for chunk in self._chunks(name, most):
                digest.update(chunk)
                try:
                    file.write(chunk)
                    file.flush()
                except OSError as error:
                    folder = Path(file.name).parent
                    raise Refused(f"the copy cannot be written to {folder}: {error.strerror}") from None
            file.truncate()
            if digest.hexdigest() != sha256:
                raise OSError(f"the checksum of {file.tell()} bytes is not the one in the index")

        self._retry(name, attempt)

    def _chunks(self, name: str, most: int) -> Iterator[bytes]:
        """Yield the contents of a file, in order, until more than `most` bytes were read."""
        files = file_system(self._scheme)
        # One request for the whole file where fsspec can stream, else requests for ranges. With a size (any but 0),
        # fsspec does not request the size first. fsspec would report each failure of that request as a missing file.
        as_stream = {"block_size": 0, "size": 1} if self._scheme in ("http", "https") else {"cache_type": "none"}
        count = 0
        with files.open(self._url + name, "rb", **as_stream) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
                count += len(chunk)
                if count > most:
                    return

    def _retry(self, name: str, attempt: Callable[[], T]) -> T:
        number, began = 0, time.monotonic()
        while True:
            number += 1
            try:
                return attempt()
            except ImportError as error:
                raise DataError(
                    f"{self.address(name)} needs the extra `remote` ({error.name or error}); run "
                    '`pip install "seresnext[remote]"`'
                ) from None
            except BUGS:
                raise
            except Exception as error:
                seconds, reason = time.monotonic() - began, reason_of(error)
                if is_final(error):
                    fix = "" if isinstance(error, Refused) else "; check data.root and the credentials"
                    raise DataError(f"{self.address(name)} cannot be read: {reason}{fix}") from None
                if number == ATTEMPTS or seconds >= PATIENCE:
                    raise DataError(
                        f"{self.address(name)} cannot be read, in {number} attempts and {seconds:.0f} s: {reason}; "
                        "check the server"
                    ) from None
            # Random pauses, because a failure usually hits many processes at once.
            time.sleep(FIRST_PAUSE * 2 ** (number - 1) * (0.5 + 0.5 * random.random()))
