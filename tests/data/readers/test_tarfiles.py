import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from fuzzing.formats import tar_header
from hypothesis import given
from hypothesis import strategies as st
from imagenet_archives import extension, special, tar

from seresnext.data.readers.tarfiles import BLOCK, Member, header_name, members
from seresnext.errors import DataError


def listing(content: bytes, start: int = 0, end: int | None = None) -> list[Member]:
    return list(members(lambda o, n: content[o : o + n], start, len(content) if end is None else end, "x.tar"))


def refusal(content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        listing(content)
    return str(caught.value)


def one(bad: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    """An archive of a good member, another one, and another good one."""
    return tar([("first.JPEG", b"abc"), bad, ("last.JPEG", b"abc")], form)


AFTER = tar({"a": b"1"})  # The member of an extension.


def resealed(content: bytes, place: int, patch: bytes) -> bytes:
    """The header at a multiple of 512 changed from `place` on, with a checksum that fits."""
    start, changed = place // BLOCK * BLOCK, content[:place] + patch + content[place + len(patch) :]
    return changed[:start] + tar_header(changed[start : start + BLOCK]) + changed[start + BLOCK :]


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
        if len(member.name.encode()) < 100 and member.name.isascii():
            assert header_name(content[member.offset - BLOCK : member.offset]) == member.name


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tar({"short.JPEG": b"1", "x" * 150: b"2"}), ["short.JPEG", "x" * 150]),
        (tar({"d" * 90 + "/" + "f" * 80: b"1"}, tarfile.USTAR_FORMAT), ["d" * 90 + "/" + "f" * 80]),
        (one(special("folder", tarfile.DIRTYPE, "")), ["first.JPEG", "last.JPEG"]),
        (tar({"./a.JPEG": b"1"}), ["a.JPEG"]),
        (extension(b"16 comment=git.\n", tarfile.XGLTYPE) + AFTER, ["a"]),
    ],
    ids=["a long name", "a long name of POSIX", "a folder", "a leading dot", "a comment for all members"],
)
def test_names_of_every_kind(content: bytes, expected: list[str]):
    assert [member.name for member in listing(content)] == expected


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


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the program tar")
@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "ustar", "v7"])
def test_archives_of_the_program_tar(tmp_path: Path, form: str):
    def packed(*names: str) -> bytes:
        command = ["tar", f"--format={form}", *(["--sparse"] if "holes" in names else []), "-cf", "x.tar", *names]
        subprocess.run(command, cwd=tmp_path, check=True)
        return (tmp_path / "x.tar").read_bytes()

    names = ["n01440764_10026.JPEG", "\u00e4.JPEG", "x" * 90]
    names += ["y" * 180] if form in ("gnu", "oldgnu", "pax") else []
    contents = {name: bytes([number]) * (511 + number) for number, name in enumerate(names)}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    content = packed(*names)
    assert {m.name: content[m.offset : m.offset + m.size] for m in listing(content)} == contents
    (tmp_path / "link").symlink_to(names[0])
    (tmp_path / "twin").hardlink_to(tmp_path / names[0])
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "holes").touch()
    os.truncate(tmp_path / "holes", 1 << 20)
    refused = {"link": "symbolic link", "twin": "hard link"}
    refused |= {"pipe": "FIFO"} if form != "v7" else {}
    refused |= {"holes": "sparse file"} if form in ("gnu", "oldgnu", "pax") else {}
    for name, words in refused.items():
        assert f"' is a {words}" in refusal(packed(names[0], name))


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
        (b"Z", "is of the unknown type b'Z'"),
    ],
)
def test_special_files_are_refused_by_name(kind: bytes, words: str):
    content = one(special("evil.JPEG"))
    place = content.index(b"evil.JPEG") + 156
    assert f"x.tar: member 'evil.JPEG' {words}" in refusal(resealed(content, place, kind))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["evil.JPEG", "e" * 150])
@pytest.mark.parametrize(("kind", "words"), [(tarfile.SYMTYPE, "a symbolic link"), (tarfile.LNKTYPE, "a hard link")])
def test_a_link_with_a_long_target_is_refused_by_its_name(form: int, name: str, kind: bytes, words: str):
    """A target of more than 100 bytes has a separate header before the header of the link."""
    content = one(special(name, kind, "t" * 150), form)
    assert b"t" * 150 in content
    assert f"x.tar: member '{name}' is {words}" in refusal(content)


def test_sparse_files_of_pax_are_refused_by_name():
    member = tarfile.TarInfo("evil.JPEG")
    member.pax_headers = {"GNU.sparse.major": "1"}
    assert "member 'evil.JPEG' is a sparse file" in refusal(one(member, tarfile.PAX_FORMAT))


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "a/.."])
def test_names_that_lead_outside_are_refused(name: str):
    assert refusal(one((name, b"abc"))).startswith(f"x.tar: member '{name}' has a name that leads outside")


@pytest.mark.parametrize("first", [("a", b"1"), ("./a", b"1"), (".//a", b"1"), special("a", tarfile.DIRTYPE, "")])
def test_a_name_that_comes_twice_is_refused(first: tuple[str, bytes] | tarfile.TarInfo):
    assert "member 'a' is there twice" in refusal(tar([first, ("a", b"2")]))


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


BAD = one(("bad.JPEG", b"abc"))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (b"77777777777\0", "member 'bad.JPEG' is cut off: 8704 of 858993"),
        (b"\x80" + b"\xff" * 11, "member 'bad.JPEG' is cut off"),
        (b"\xff" * 12, "member 'bad.JPEG' has the size"),
        (b"-0000000001\0", "member 'bad.JPEG' has the size"),
        (b"0x1\0\0\0\0\0\0\0\0\0", "member 'bad.JPEG' has the size"),
    ],
)
def test_a_size_beyond_the_archive_names_the_member(size: bytes, message: str):
    assert message in refusal(resealed(BAD, BAD.index(b"bad.JPEG") + 124, size))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BAD.replace(b"bad.JPEG", b"Bad.JPEG"), "damaged header after member 'first.JPEG'"),
        (BAD + BAD, "has more data after the end mark, after member 'last.JPEG'"),
        (extension(bytes(2 << 20), tarfile.GNUTYPE_LONGNAME) + AFTER, "header extension of 2097152 bytes"),
        *(
            (extension(record, tarfile.XHDTYPE) + AFTER, "damaged header extension")
            for record in (b"12 path=a", b"99 path=a\n", b"x", b"0 path=a\n", b"9 path:a\n")
        ),
        (extension(b"10 path=a\n", tarfile.XGLTYPE) + AFTER, "gives all later members the same"),
    ],
)
def test_damage_is_reported_with_its_place(content: bytes, message: str):
    assert message in refusal(content)


def test_a_name_cannot_write_on_the_terminal():
    message = refusal(one(special("\x1b[2J\nerror: pay\n" + "x" * 5000)))
    assert message.isprintable()
    assert len(message) < 300
