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
"""Number of attempts."""

PATIENCE = 200.0
"""Seconds after which there is no new attempt. `runtime.loader_timeout` (by default 600) is longer, so that the error
message has the answer of the server."""

FIRST_PAUSE = 1.0
"""Longest pause before the second attempt, in seconds. Each later pause may be twice as long."""

_CHUNK = 8 << 20
_MOST_BYTES_AT_ONCE = 256 << 20
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

    def read(self, name: str) -> bytes:
        """Return a small file. Raises DataError naming the address of a file that cannot be read."""

        def attempt() -> bytes:
            content = b"".join(self._chunks(name, _MOST_BYTES_AT_ONCE))
            if len(content) > _MOST_BYTES_AT_ONCE:
                raise _Refused(f"the file has more than {_MOST_BYTES_AT_ONCE} bytes")
            return content

        return self._retry(name, attempt)

    def copy(self, name: str, target: Path, sha256: str, size: int | None = None, most: int | None = None) -> None:
        """Write a file to `target`. Raises DataError when the file is incomplete or has another checksum.

        Without `size`, the exact number of bytes, at most `most` bytes are read.
        """

        def attempt() -> None:
            digest, count = hashlib.sha256(), 0
            with target.open("wb") as file:
                for chunk in self._chunks(name, most if size is None else size):
                    _write(file, chunk)
                    digest.update(chunk)
                    count += len(chunk)
            if size is not None and count != size:
                raise OSError(f"{count} bytes came instead of {size}")
            if digest.hexdigest() != sha256:
                raise OSError("the checksum is not the one in the index")

        self._retry(name, attempt)

    def _chunks(self, name: str, most: int | None) -> Iterator[bytes]:
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
                if most is not None and count > most:
                    return

    def _retry(self, name: str, attempt: Callable[[], T]) -> T:
        reason = ""
        number, began = 0, time.monotonic()
        while number < ATTEMPTS and (number == 0 or time.monotonic() - began < PATIENCE):
            number += 1
            if number > 1:
                # Random pauses, because a failure usually hits many processes at once.
                time.sleep(FIRST_PAUSE * 2 ** (number - 2) * (0.5 + 0.5 * random.random()))
            try:
                return attempt()
            except ImportError as error:
                raise DataError(
                    f"{self.address(name)} needs the extra `remote` ({error.name or error}); run "
                    '`pip install "seresnext[remote]"`'
                ) from None
            except Exception as error:  # Each of fsspec's libraries raises other types.
                if isinstance(error, TypeError | AttributeError | AssertionError):
                    raise  # A bug of this project.
                reason = _reason(error)
                if _is_final(error):
                    fix = "" if isinstance(error, _Refused) else "; check data.root and the credentials"
                    raise DataError(f"{self.address(name)} cannot be read: {reason}{fix}") from None
        seconds = time.monotonic() - began
        raise DataError(
            f"{self.address(name)} cannot be read, in {number} attempts and {seconds:.0f} s: {reason}; check the server"
        )


def _write(file: BinaryIO, chunk: bytes) -> None:
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise _Refused(f"the copy cannot be written to {Path(file.name).parent}: {error.strerror}") from None


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
    status = getattr(error, "status", None)
    if status is not None:
        return f"the server answers {status}"
    text = " ".join(str(error).split())
    text = re.sub(r"\S*://\S*", "(address)", text)
    return text[:200] or type(error).__name__
