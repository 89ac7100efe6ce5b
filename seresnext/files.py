"""Files and paths of users, which may be anything: reads that cannot stall, and writes that leave no part."""

import errno
import io
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from seresnext.errors import CheckpointError, DataError, Failure, UsageError, printable, shown_path

_MAX_BYTES = 1 << 20  # of a small file


class NotRegularError(OSError):
    """A path that is a folder, a pipe or a device."""


def open_regular(path: str | Path) -> int:
    """Open a file for reading and return the descriptor. Links are followed.

    Raise OSError, and NotRegularError for a folder, a pipe (whose open waits for a writer) or a device without end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old text or the new text, never a part. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # Errors of `write` name no file, errors of `open` do.
        raise
    finally:  # Also after Ctrl-C.
        temporary.unlink(missing_ok=True)


def check_output_file(path: Path, option: str) -> None:
    """Raise UsageError if a file cannot be written, so that long work does not end without a result."""
    place = path.absolute()
    nearest = next(each for each in (place, *place.parents) if os.path.exists(each))  # noqa: PTH110 (raises nothing)
    # A file is replaced, also behind a link. A device is not.
    is_replaced = place.is_file() and not _is_device(place)
    written = Path(os.path.realpath(place)).parent if is_replaced else nearest
    if nearest.is_dir() == (nearest == place) or not os.access(written, os.W_OK):
        raise UsageError(f"{path} cannot be written; choose another file with {option}")


def read_small_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty dict for another file.

    Not read are files over 1 MiB, devices, pipes (which may have no end) and deeply nested content.
    """
    found = None
    with suppress(OSError, ValueError, RecursionError):
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_BYTES:
            found = json.loads(path.read_text())
    return found if isinstance(found, dict) else {}


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that have text. Raise DataError, which names a line that is not UTF-8."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_text(path: Path) -> str:
    """Return the content of a text file. Raise DataError, which names a line that is not UTF-8."""
    content = b""
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")  # Editors on Windows begin a file with a byte-order mark.
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give a text file") from None
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{number} is not UTF-8 (byte 0x{content[error.start]:02x}); save as UTF-8") from None


def _is_device(path: Path) -> bool:
    """Return whether a path is a device, a pipe, or a name of an open file, such as /dev/stdout or /dev/fd/3."""
    return path.exists() and (not path.is_file() or (path.is_symlink() and path.is_relative_to("/dev")))


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield the file that an option of a command names. The file appears at the end of the block, not after an error.

    A link stays, and the file behind it is replaced. A device, a pipe, and /dev/stdout also if redirected to a file, is
    appended to and not replaced. Raise UsageError for a path where no file can be, and Failure for a write that fails.
    """
    problem = f"{shown_path(path)} cannot be written: {{}}; choose another file"
    is_device = _is_device(path)
    target = path if is_device else Path(os.path.realpath(path))
    temporary = target if is_device else target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("ab" if is_device else "wb")
    except OSError as error:
        raise UsageError(problem.format(error.strerror)) from None
    try:
        with file:
            yield file
        if not is_device:
            temporary.replace(target)
    except OSError as error:
        raise Failure(problem.format(error.strerror)) from None
    finally:
        if not is_device:
            temporary.unlink(missing_ok=True)


def write_output(path: Path, text: str) -> None:
    """Write the file that an option of a command names. Raise the errors of new_file."""
    with new_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write the JSON file that an option of a command names. Raise the errors of new_file."""
    write_output(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def writing_to(output: Path) -> Iterator[None]:
    """Raise Failure if the block cannot write the folder `output`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise Failure(f"{shown_path(output)} cannot be written: {reason}; choose another folder") from None


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield a folder that gets the name `output` at the end of the block, and is removed after an error.

    Raise Failure if the folder cannot be written.
    """
    with writing_to(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
            folder = Path(temporary) / output.name
            folder.mkdir()
            yield folder
            folder.rename(output)


HUB_PREFIX = "hf-hub:"  # before a repository of the Hugging Face Hub, as in timm


def is_remote(path: str | Path) -> bool:
    """Return whether a path is an address, such as `https://host/file`."""
    return "://" in str(path)


def expand_home(path: str | Path) -> Path:
    """Return the path with a leading `~` or `~user` replaced by the home folder, if the user exists."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib raises RuntimeError for an unknown user)


def is_list(root: str | Path) -> bool:
    """Return whether the data is a list of photos by the ending of the path, and not a folder."""
    return str(root).lower().endswith((".csv", ".jsonl")) and not os.path.isdir(root)  # noqa: PTH112 (raises nothing)


def check_data_folder(root: str) -> None:
    """Raise DataError if the folder of the data, or the list, does not exist. An address is checked later."""
    exists = os.path.isfile if is_list(root) else os.path.isdir  # (raises nothing)
    if not is_remote(root) and not exists(root):
        kind = "file" if is_list(root) else "folder"
        raise DataError(
            f"there is no {kind} {root}; give the folder of the images, or a list (.csv, .jsonl), with --data"
        )


def checkpoint_argument(given: str) -> Path:
    """Return the path of the checkpoint that `--resume` names. Raises UsageError unless the path is a file.

    For a run folder the message names the newest checkpoint of the folder.
    """
    if is_remote(given):
        raise UsageError(f"--resume {given} is an address. Download the checkpoint, and give the path of the file")
    path = expand_home(given)
    is_file = os.path.isfile  # (raises nothing)
    if is_file(path):
        return path
    for newest in (path / "checkpoints" / "last.safetensors", path / "last.safetensors"):
        if is_file(newest):
            raise UsageError(f"--resume {path} is a folder. Give a checkpoint of the folder: --resume {newest}")
    raise UsageError(
        f"--resume {printable(given, longest=300)}: no such file. Give auto, never, or the path of a checkpoint"
    )


# Data are read in pieces. No descriptor stays open, so processes share none.
LARGEST_IMAGE = 512 << 20
"""Most bytes of an encoded image that are read: the size of the largest image that Pillow opens, uncompressed."""


def read_image(path: str) -> bytes:
    """Return the bytes of an image file. Raises OSError, and DataError for a file that is too large."""
    # Without pathlib and buffering, which would take as long as the read itself.
    with io.FileIO(open_regular(path)) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_IMAGE:
            raise DataError(f"{path} has {size} bytes, more than {LARGEST_IMAGE}; remove the file")
        return file.readall()


def read_piece(descriptor: int, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file from `offset` on, fewer at the end of the file. Raises OSError."""
    data = os.pread(descriptor, size, offset)
    # One call gives fewer bytes on some network file systems, and never more than 2 GiB.
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


def read_at(path: str | Path, offset: int, size: int, expected: tuple[int, int] | None = None) -> bytes:
    """Open a file, and return `size` bytes from `offset` on, fewer at the end of the file.

    Raises OSError, also when the file has not the `expected` size in bytes and modification time in nanoseconds.
    """
    descriptor = open_regular(path)
    try:
        status = os.fstat(descriptor)
        if expected is not None and (status.st_size, status.st_mtime_ns) != expected:
            raise OSError(0, "it has changed since its index was read", str(path))
        return read_piece(descriptor, offset, size)
    finally:
        os.close(descriptor)


class UnreadableError(CheckpointError):
    """A file that the system does not let this process read. The content may be good."""


@contextmanager
def open_weights_file(path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading in a block.

    Raise UnreadableError if the system refuses, also a read in the block, and CheckpointError if the path is no regular
    file or has a NUL character.
    """
    try:
        descriptor = open_regular(path)
    except (NotRegularError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{shown_path(path)} cannot be opened: {reason}; give another path") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    with os.fdopen(descriptor, "rb") as file:
        try:
            yield file
        except OSError as error:
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UnreadableError:
    return UnreadableError(f"{shown_path(path)} cannot be read: {error.strerror}; give another path")
