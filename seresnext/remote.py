"""Files of a server through fsspec (extra `remote`): addresses, bounded connections, attempts, reasons of failures.

Credentials come from the places where fsspec's libraries look (environment, netrc, configuration files of the cloud),
never from an address, and no message shows them.
"""

import random
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from seresnext.errors import DataError, Failure, UsageError
from seresnext.process.packages import require_extra

T = TypeVar("T")

ATTEMPTS = 5
"""Attempts of a request. A server that is silent in all of them is reported before `runtime.loader_timeout` ends a run.

The timeout is 600 seconds by default, and its message has no reason.
"""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two attempts; each pause is twice as long as the one before

BUGS = (TypeError, AttributeError, AssertionError)
"""Errors of this project among the errors of fsspec's libraries, each of which raises other types."""

PACKAGES = {"file": (), "s3": ("s3fs",), "gs": ("gcsfs",), "http": ("aiohttp",), "https": ("aiohttp",)}
"""The packages for an address, in addition to fsspec."""

_CONNECT_SECONDS, _SILENT_SECONDS = 30, 60
_FINAL_ANSWERS = (400, 401, 403, 404, 410)


def refuse_secrets(url: str, key: str) -> None:
    """Raise UsageError, without the secret, if the address of a key has a user, a password, a query or a fragment."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise UsageError(
            f"{key} {shown} has a user, a password or a query, and checkpoints store the address; give credentials in "
            "the environment, ~/.netrc or the configuration of the cloud"
        )


def file_system(scheme: str) -> Any:
    """Return fsspec's file system of a scheme, such as `s3` or `file`. One request takes a bounded time.

    Raises UsageError without the extra, and DataError for an unknown scheme.
    """
    require_extra("remote", "fsspec", *PACKAGES.get(scheme, ()))
    import fsspec

    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
        # `trust_env` reads proxies and ~/.netrc. A compressed transfer would have another length.
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
        options["headers"] = {"Accept-Encoding": "identity"}
    if scheme == "file":
        options["auto_mkdir"] = True
    if scheme == "s3":
        options["config_kwargs"] = {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _SILENT_SECONDS,
            "retries": {"total_max_attempts": 1},  # The callers repeat attempts.
        }
    try:
        found = fsspec.filesystem(scheme, **options)
        if scheme == "s3":
            found.retries = 1
        return found
    except ValueError:
        raise DataError(f"{scheme}:// is an unknown kind of address; give https://, s3:// or gs://") from None


def retry(
    action: Callable[[], T], problem: str, final: tuple[type[Failure], str], other: tuple[type[Failure], str]
) -> T:
    """Return the result of an action, tried several times.

    After a `final` failure, or after the last attempt, raises the given error with the problem, the reason and the fix.
    Failure is raised at once, unchanged.
    """
    number = 0
    while True:
        number += 1
        try:
            return action()
        except (Failure, *BUGS):
            raise
        except Exception as error:
            if is_final(error):
                raise final[0](f"{problem}: {reason_of(error)}; {final[1]}") from None
            if number == ATTEMPTS:
                raise other[0](f"{problem}, in {number} attempts: {reason_of(error)}; {other[1]}") from None
        time.sleep(pause(number))


def pause(attempt: int) -> float:
    """Return the seconds after an attempt. They are random, because a failure usually hits many processes at once."""
    return min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * (0.5 + 0.5 * random.random())


def is_final(error: Exception) -> bool:
    """Return whether another attempt would fail in the same way."""
    return (
        isinstance(error, FileNotFoundError | PermissionError | Failure)
        or getattr(error, "status", 0) in _FINAL_ANSWERS
        or "Credential" in type(error).__name__
    )


def reason_of(error: Exception) -> str:
    """Return the cause in one line, without anything that looks like an address."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if (status := getattr(error, "status", None)) is not None:
        return f"the server answers {status}"
    return re.sub(r"\S*://\S*", "(address)", " ".join(str(error).split()))[:200] or type(error).__name__
