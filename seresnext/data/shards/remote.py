"""Files of a server through fsspec.

Needs the extra `remote`. Credentials are found where fsspec's libraries look for them (environment, netrc, their own
configuration files), never in an address, and no message shows any.
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
"""How often something is tried before it is given up."""

PATIENCE = 200.0
"""Seconds after which nothing is tried anew. The loader gives a worker up after `runtime.loader_timeout`, 600 by
default, and could then not tell what the server said."""

FIRST_PAUSE = 1.0
"""Seconds before the second attempt, at the most; each later pause may be twice as long as the one before."""

_CHUNK = 8 << 20
_MOST_BYTES_AT_ONCE = 256 << 20
_CONNECT_SECONDS, _SILENT_SECONDS = 30, 60
_FINAL_ANSWERS = (400, 401, 403, 404, 410)


def is_remote(root: str) -> bool:
    """Whether a root is an address and not a folder."""
    return "://" in root


def shown_url(url: str) -> str:
    """An address without user, password and query, for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class _Refused(Exception):
    """What will not change by trying again."""


class Remote:
    """The files below one address. Raises DataError for an address that cannot be used."""

    def __init__(self, root: str, folder: str) -> None:
        parts = urlsplit(root)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise DataError(
                f"{shown_url(root)}: data.root has a user, a password or a query in it, and is stored in every "
                "checkpoint; give credentials through the environment, ~/.netrc or the cloud's own configuration"
            )
        self._url = f"{root.rstrip('/')}/{folder}/"
        self._scheme = parts.scheme

    def place(self, name: str) -> str:
        """The address of a file, for messages."""
        return self._url + name

    def read(self, name: str) -> bytes:
        """A small file. Raises DataError naming its address when it cannot be had."""

        def attempt() -> bytes:
            content = b"".join(self._chunks(name, _MOST_BYTES_AT_ONCE))
            if len(content) > _MOST_BYTES_AT_ONCE:
                raise _Refused(f"it has more than {_MOST_BYTES_AT_ONCE} bytes")
            return content

        return self._persistently(name, attempt)

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
                raise OSError("its checksum is another than its index says")

        self._persistently(name, attempt)

    def _chunks(self, name: str, most: int | None) -> Iterator[bytes]:
        """The contents of a file, in order, until just beyond `most` bytes."""
        file_system = _file_system(self._scheme)
        # One request for all of it where that can be read as it comes; ranges of it elsewhere. A size that is given,
        # any but 0, keeps fsspec from asking for it first and taking every failure of that for a missing file.
        as_stream = {"block_size": 0, "size": 1} if self._scheme in ("http", "https") else {"cache_type": "none"}
        count = 0
        with file_system.open(self._url + name, "rb", **as_stream) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
                count += len(chunk)
                if most is not None and count > most:
                    return

    def _persistently(self, name: str, attempt: Callable[[], T]) -> T:
        reason = ""
        number, began = 0, time.monotonic()
        while number < ATTEMPTS and (number == 0 or time.monotonic() - began < PATIENCE):
            number += 1
            if number > 1:
                # Not all at once: what failed for one process failed for its neighbours, too.
                time.sleep(FIRST_PAUSE * 2 ** (number - 2) * (0.5 + 0.5 * random.random()))
            try:
                return attempt()
            except ImportError as error:
                raise DataError(
                    f"{self.place(name)} needs the extra `remote` ({error.name or error}): pip install -e '.[remote]'"
                ) from None
            except Exception as error:  # Each of fsspec's libraries has its own kinds.
                if isinstance(error, TypeError | AttributeError | AssertionError):
                    raise  # Ours.
                reason = _reason(error)
                if _is_final(error):
                    raise DataError(f"{self.place(name)} cannot be read: {reason}") from None
        seconds = time.monotonic() - began
        raise DataError(f"{self.place(name)} cannot be read, in {number} attempts and {seconds:.0f} s: {reason}")


def _write(file: BinaryIO, chunk: bytes) -> None:
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise _Refused(f"its copy cannot be written to {Path(file.name).parent}: {error.strerror}") from None


def _file_system(scheme: str) -> Any:
    import fsspec

    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
        # `trust_env` is for proxies and ~/.netrc. Compressed on its way, a file would have another length.
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
        options["headers"] = {"Accept-Encoding": "identity"}
    if scheme == "s3":
        options["config_kwargs"] = {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _SILENT_SECONDS,
            "retries": {"total_max_attempts": 1},  # The attempts are ours.
        }
    try:
        file_system = fsspec.filesystem(scheme, **options)
        if scheme == "s3":
            file_system.retries = 1
        return file_system
    except ValueError:
        raise _Refused(f"{scheme}:// is no kind of address that is known; give https://, s3:// or gs://") from None


def _is_final(error: Exception) -> bool:
    return (
        isinstance(error, FileNotFoundError | PermissionError | _Refused)
        or getattr(error, "status", 0) in _FINAL_ANSWERS
        or "Credential" in type(error).__name__
    )


def _reason(error: Exception) -> str:
    """What went wrong, in one line, without whatever a library put into its message that looks like an address."""
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
