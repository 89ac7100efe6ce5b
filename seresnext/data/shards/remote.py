"""Files of a server through fsspec (extra `remote`).

Credentials come from the places where fsspec's libraries look (environment, netrc, configuration files of the cloud),
never from an address, and no message shows them.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from seresnext.errors import DataError

T = TypeVar("T")

ATTEMPTS = 5
# Seconds after which there is no new attempt. `runtime.loader_timeout` (by default 600) is longer, so that the error
# message has the answer of the server.
PATIENCE = 200.0
# Longest pause before the second attempt, in seconds. Each later pause may be twice as long.
FIRST_PAUSE = 1.0

_CHUNK = 8 << 20
_CONNECT_SECONDS, _SILENT_SECONDS = 30, 60
_FINAL_ANSWERS = (400, 401, 403, 404, 410)


def is_remote(root: str) -> bool:
    """Return whether a root is an address and not a folder."""
    return "://" in root


def shown_url(url: str) -> str:
    """Return an address without user, password and query, for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class _Refused(Exception):
    """A failure that another attempt would not change."""


class Remote:
    """The files below one address. Raises DataError for an address that cannot be used."""

    def __init__(self, root: str, folder: str) -> None:
        parts = urlsplit(root)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise DataError(
                f"{shown_url(root)}: data.root has a user, a password or a query, and every checkpoint stores "
                "data.root; give credentials in the environment, ~/.netrc or the configuration of the cloud"
            )
        self._url = f"{root.rstrip('/')}/{folder}/"
        self._scheme = parts.scheme

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
                    raise _Refused(f"the copy cannot be written to {folder}: {error.strerror}") from None
            file.truncate()
            if digest.hexdigest() != sha256:
                raise OSError(f"the checksum of {file.tell()} bytes is not the one in the index")

        self._retry(name, attempt)

    def _chunks(self, name: str, most: int) -> Iterator[bytes]:
        """Yield the contents of a file, in order, until more than `most` bytes were read."""
        file_system = _file_system(self._scheme)
        # One request for the whole file where fsspec can stream, else requests for ranges. With a size (any but 0),
        # fsspec does not request the size first. fsspec would report each failure of that request as a missing file.
        as_stream = {"block_size": 0, "size": 1} if self._scheme in ("http", "https") else {"cache_type": "none"}
        count = 0
        with file_system.open(self._url + name, "rb", **as_stream) as file:
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
            except (TypeError, AttributeError, AssertionError):
                raise  # A bug of this project.
            except Exception as error:  # Each of fsspec's libraries raises other types.
                seconds, reason = time.monotonic() - began, _reason(error)
                if _is_final(error):
                    fix = "" if isinstance(error, _Refused) else "; check data.root and the credentials"
                    raise DataError(f"{self.address(name)} cannot be read: {reason}{fix}") from None
                if number == ATTEMPTS or seconds >= PATIENCE:
                    raise DataError(
                        f"{self.address(name)} cannot be read, in {number} attempts and {seconds:.0f} s: {reason}; "
                        "check the server"
                    ) from None
            # Random pauses, because a failure usually hits many processes at once.
            time.sleep(FIRST_PAUSE * 2 ** (number - 1) * (0.5 + 0.5 * random.random()))


def _file_system(scheme: str) -> Any:
    import fsspec

    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
        # `trust_env` reads proxies and ~/.netrc. A compressed transfer would have another length.
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
        options["headers"] = {"Accept-Encoding": "identity"}
    if scheme == "s3":
        options["config_kwargs"] = {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _SILENT_SECONDS,
            "retries": {"total_max_attempts": 1},  # `Remote` repeats attempts.
        }
    try:
        file_system = fsspec.filesystem(scheme, **options)
        if scheme == "s3":
            file_system.retries = 1
        return file_system
    except ValueError:
        raise _Refused(f"{scheme}:// is an unknown kind of address; give https://, s3:// or gs://") from None


def _is_final(error: Exception) -> bool:
    return (
        isinstance(error, FileNotFoundError | PermissionError | _Refused)
        or getattr(error, "status", 0) in _FINAL_ANSWERS
        or "Credential" in type(error).__name__
    )


def _reason(error: Exception) -> str:
    """Return the cause in one line, without anything that looks like an address."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, _Refused):
        return str(error)
    if (status := getattr(error, "status", None)) is not None:
        return f"the server answers {status}"
    return re.sub(r"\S*://\S*", "(address)", " ".join(str(error).split()))[:200] or type(error).__name__
