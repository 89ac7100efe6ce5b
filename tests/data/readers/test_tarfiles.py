from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagenet_archives import tar

from seresnext.data.readers.files import FilesAtOffsets
from seresnext.data.readers.tarfiles import BLOCK, Member, header_name, members
from seresnext.errors import DataError


def listing(content: bytes, start: int = 0, end: int | None = None) -> list[Member]:
    return list(members(lambda o, n: content[o : o + n], start, len(content) if end is None else end, "x.tar"))


def refusal(content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        listing(content)
    return str(caught.value)


def one(name: str = "bad", kind: bytes = tarfile.REGTYPE, form: int = tarfile.GNU_FORMAT, **fields: object) -> bytes:
    """An archive of a good member, one of a kind, and another good one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for each in ("first.JPEG", None, "last.JPEG"):
            entry = tarfile.TarInfo(each or name)
            entry.size = 3
            if each is None:
                entry.type = kind
                entry.size = 0 if kind != tarfile.REGTYPE else 3
                for field, value in fields.items():
                    setattr(entry, field, value)
            archive.addfile(entry, io.BytesIO(b"abc"))
    return buffer.getvalue()


def resealed(content: bytes, place: int, patch: bytes) -> bytes:
    """The header at a multiple of 512 changed from `place` on, with a checksum that fits."""
    start = place // BLOCK * BLOCK
    block = bytearray(content[start : start + BLOCK])
    block[place - start : place - start + len(patch)] = patch
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return content[:start] + bytes(block) + content[start + BLOCK :]


# ------------------------------------------------------------------------------------------------ good archives

NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=160)


@given(
    st.dictionaries(NAMES.filter(lambda name: name not in (".", "..")), st.binary(max_size=1200), max_size=6),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(0, 2000),
)
def test_members_equal_the_standard_library(contents: dict[str, bytes], form: int, before: int):
    archive = tar(contents, form)
    content = bytes(before) + archive + b"unrelated"
    found = listing(content, before, before + len(archive))
    assert [(m.name, content[m.offset : m.offset + m.size]) for m in found] == list(contents.items())
    for member in found:
        if member.is_plain:
            assert header_name(content[member.offset - BLOCK : member.offset]) == member.name


def test_a_short_name_is_plain_and_a_long_one_is_not():
    assert [m.is_plain for m in listing(tar({"short.JPEG": b"1", "x" * 150: b"2"}))] == [True, False]


def test_a_long_name_of_posix_is_split():
    name = "d" * 90 + "/" + "f" * 80
    (member,) = listing(tar({name: b"1"}, tarfile.USTAR_FORMAT))
    assert member.name == name


def test_folders_are_skipped():
    assert [m.name for m in listing(one("folder", tarfile.DIRTYPE))] == ["first.JPEG", "last.JPEG"]


def test_a_leading_dot_is_dropped():
    assert [(m.name, m.is_plain) for m in listing(tar({"./a.JPEG": b"1"}))] == [("a.JPEG", False)]


def test_a_size_of_many_gibibytes_is_understood():
    size = 147 << 30
    entry = tarfile.TarInfo("n01440764.tar")
    entry.size = size
    header = entry.tobuf(tarfile.GNU_FORMAT)
    data = -(-size // BLOCK) * BLOCK

    def read(offset: int, count: int) -> bytes:
        return header if offset == 0 else bytes(count)

    (member,) = members(read, 0, BLOCK + data + 20 * BLOCK, "x.tar")
    assert (member.offset, member.size) == (BLOCK, size)


def test_comments_for_all_members_are_skipped():
    buffer = io.BytesIO()
    headers = {"comment": "made by git archive"}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers) as archive:
        archive.addfile(tarfile.TarInfo("a"))
    assert [m.name for m in listing(buffer.getvalue())] == ["a"]


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the program tar")
@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "ustar", "v7"])
def test_archives_of_the_program_tar_are_read(tmp_path: Path, form: str):
    names = [
        "n01440764_10026.JPEG",
        "\u00e4.JPEG",
        "x" * 90,
        *(["y" * 180] if form in ("gnu", "oldgnu", "pax") else []),
    ]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes([number]) * (511 + number))
    subprocess.run(["tar", f"--format={form}", "-cf", tmp_path / "x.tar", *names], cwd=tmp_path, check=True)
    content = (tmp_path / "x.tar").read_bytes()
    found = listing(content)
    assert [(m.name, content[m.offset : m.offset + m.size]) for m in found] == [
        (name, bytes([number]) * (511 + number)) for number, name in enumerate(names)
    ]
    (tmp_path / "link").symlink_to(names[0])
    (tmp_path / "twin").hardlink_to(tmp_path / names[0])
    os.mkfifo(tmp_path / "pipe")
    for name, words in [("link", "symbolic link"), ("twin", "hard link"), ("pipe", "FIFO")]:
        if form == "v7" and name == "pipe":
            continue
        argv = ["tar", f"--format={form}", "-cf", tmp_path / "x.tar", names[0], name]
        subprocess.run(argv, cwd=tmp_path, check=True)
        assert f"member '{name}' is a {words}" in refusal((tmp_path / "x.tar").read_bytes())


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the program tar")
@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_files_of_the_program_tar_are_refused(tmp_path: Path, form: str):
    with (tmp_path / "holes").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    subprocess.run(["tar", f"--format={form}", "--sparse", "-cf", "x.tar", "holes"], cwd=tmp_path, check=True)
    assert "is a sparse file" in refusal((tmp_path / "x.tar").read_bytes())


# ------------------------------------------------------------------------------------------------ hostile archives


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.LNKTYPE, "is a hard link"),
        (tarfile.SYMTYPE, "is a symbolic link"),
        (tarfile.CHRTYPE, "is a character device"),
        (tarfile.BLKTYPE, "is a block device"),
        (tarfile.FIFOTYPE, "is a FIFO"),
        (tarfile.GNUTYPE_SPARSE, "is a sparse file"),
        (b"M", "is the continuation"),
        (b"Z", "is of the unknown type b'Z'"),
    ],
)
def test_special_files_are_refused_by_name(kind: bytes, words: str):
    content = one("evil.JPEG", size=0, linkname="/etc/passwd")
    place = content.index(b"evil.JPEG") + 156
    assert f"x.tar: member 'evil.JPEG' {words}" in refusal(resealed(content, place, kind))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["evil.JPEG", "e" * 150])
@pytest.mark.parametrize(("kind", "words"), [(tarfile.SYMTYPE, "a symbolic link"), (tarfile.LNKTYPE, "a hard link")])
def test_a_link_with_a_long_target_is_refused_by_its_name(form: int, name: str, kind: bytes, words: str):
    """A target of more than 100 bytes has a separate header before the header of the link."""
    content = one(name, kind, form, linkname="t" * 150)
    assert b"t" * 150 in content
    assert f"x.tar: member '{name}' is {words}" in refusal(content)


def test_sparse_files_of_pax_are_refused_by_name():
    content = one("evil.JPEG", form=tarfile.PAX_FORMAT, pax_headers={"GNU.sparse.major": "1"})
    assert "member 'evil.JPEG' is a sparse file" in refusal(content)


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "a/.."])
def test_names_that_lead_outside_are_refused(name: str):
    assert refusal(one(name)).startswith(f"x.tar: member '{name}' has a name that leads outside")


@pytest.mark.parametrize("names", [("a", "a"), ("a", "./a"), ("b/a", "b//a")])
def test_a_name_that_comes_twice_is_refused(names: tuple[str, str]):
    content = tar([(name, b"1") for name in names])
    assert f"member {names[1]!r} is there twice" in refusal(content)


def test_a_folder_and_a_file_of_one_name_are_refused():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        archive.addfile(tarfile.TarInfo("a"))
    assert "'a' is there twice" in refusal(buffer.getvalue())


def test_every_cut_is_noticed():
    """An archive that is cut before the end mark is refused by the member that is cut, or by the last member."""
    content = tar({f"{n}.JPEG": bytes([n]) * (300 + 400 * n) for n in range(4)})
    whole = listing(content)
    end = -(-(whole[-1].offset + whole[-1].size) // BLOCK) * BLOCK + 2 * BLOCK
    assert listing(content[:end]) == whole
    for cut in range(0, end, 64):
        message = refusal(content[:cut])
        assert "cut off" in message
        # The last member with a whole header. The end mark may be half there.
        begun = [m.name for m in whole if m.offset <= cut]
        assert (repr(begun[-1]) if begun else "its first member") in message


def test_a_size_beyond_the_archive_names_the_member():
    content = one("bad.JPEG")
    place = content.index(b"bad.JPEG") + 124
    assert "member 'bad.JPEG' is cut off: 8704 of 858993" in refusal(resealed(content, place, b"77777777777\0"))
    assert "member 'bad.JPEG' is cut off" in refusal(resealed(content, place, b"\x80" + b"\xff" * 11))
    for text in (b"\xff" * 12, b"-0000000001\0", b"0x1\0\0\0\0\0\0\0\0\0"):
        assert "member 'bad.JPEG' has the size" in refusal(resealed(content, place, text))


def test_a_damaged_header_is_reported_with_the_member_before():
    content = bytearray(one("bad.JPEG"))
    content[content.index(b"bad.JPEG")] ^= 1
    assert "damaged header after member 'first.JPEG'" in refusal(bytes(content))


def test_two_archives_in_one_file_are_not_half_read():
    content = tar({"a": b"1"})
    assert "has more data after the end mark, after member 'a'" in refusal(content + content)


def test_header_extensions_are_bounded_and_whole():
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 2 << 20
    assert "header extension of 2097152 bytes" in refusal(entry.tobuf(tarfile.GNU_FORMAT) + bytes(3 << 20))
    for damage in (b"12 path=a", b"99 path=a\n", b"x", b"0 path=a\n", b"9 path:a\n"):
        entry = tarfile.TarInfo("x")
        entry.type, entry.size = tarfile.XHDTYPE, len(damage)
        content = entry.tobuf(tarfile.USTAR_FORMAT) + damage.ljust(BLOCK, b"\0") + tar({"a": b"1"})
        assert "damaged header extension" in refusal(content)


def test_one_name_for_all_members_is_refused():
    entry = tarfile.TarInfo("x")
    entry.type, record = tarfile.XGLTYPE, b"10 path=a\n"
    entry.size = len(record)
    content = entry.tobuf(tarfile.USTAR_FORMAT) + record.ljust(BLOCK, b"\0") + tar({"b": b"1"})
    assert "gives all later members the same" in refusal(content)


def test_a_name_cannot_write_on_the_terminal():
    message = refusal(one("\x1b[2J\nerror: pay\n" + "x" * 5000, tarfile.SYMTYPE))
    assert message.isprintable()
    assert len(message) < 300


@given(st.binary(max_size=3 * BLOCK), st.integers(0, 8 * BLOCK))
def test_noise_is_refused_or_read_but_never_crashes(noise: bytes, place: int):
    content = bytearray(tar({"a.JPEG": b"1" * 600, "b.JPEG": b"2"}))
    content[place : place + len(noise)] = noise
    try:
        found = listing(bytes(content))
    except DataError:
        return
    assert all(m.offset >= 0 and m.offset + m.size <= len(content) for m in found)


# ------------------------------------------------------------------------------------------------ bytes of files


def opened(tmp_path: Path) -> FilesAtOffsets:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 4)
    status = path.stat()
    return FilesAtOffsets([path], [(status.st_size, status.st_mtime_ns)])


def test_bytes_are_read_in_place(tmp_path: Path):
    files = opened(tmp_path)
    assert files.read(0, 300, 3) == bytes([44, 45, 46])
    assert files.read(0, 5, 0) == b""
    with pytest.raises(OSError, match="ends too early"):
        files.read(0, 1020, 5)


def test_a_changed_file_is_not_read(tmp_path: Path):
    files = opened(tmp_path)
    (tmp_path / "data").write_bytes(b"other")
    with pytest.raises(OSError, match="has changed"):
        files.read(0, 0, 1)
    (tmp_path / "data").unlink()
    with pytest.raises(FileNotFoundError):
        files.read(0, 0, 1)


def handles() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


def test_a_forked_process_opens_its_own_handle(tmp_path: Path):
    files = opened(tmp_path)
    files.read(0, 0, 1)
    (mine,) = files._descriptors.values()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.lseek(mine, 7, os.SEEK_SET)  # If the handle were kept, the parent would share this position.
        files.read(0, 0, 1)
        (own,) = files._descriptors.values()
        os.lseek(own, 9, os.SEEK_SET)
        os.write(writer, b"read" if files._process == os.getpid() else b"no")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"read"
    os.close(reader)
    os.close(writer)
    assert os.lseek(mine, 0, os.SEEK_CUR) == 7
    assert files.read(0, 0, 1) == b"\0"


def test_a_pickled_one_opens_its_own_handle(tmp_path: Path):
    files = opened(tmp_path)
    files.read(0, 0, 1)
    copy = pickle.loads(pickle.dumps(files))
    assert copy._descriptors == {}
    assert copy.read(0, 1, 1) == b"\1"
    assert set(copy._descriptors.values()).isdisjoint(files._descriptors.values())


def read_together(files: FilesAtOffsets, count: int) -> None:
    """In threads that begin at once, so that several find the file unopened."""
    barrier = threading.Barrier(count)

    def read() -> None:
        barrier.wait()
        files.read(0, 0, 1)

    threads = [threading.Thread(target=read) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_handles_are_given_back(tmp_path: Path):
    before = handles()
    files = opened(tmp_path)
    read_together(files, 8)
    assert len(handles() - before) == 1
    del files
    assert handles() == before
