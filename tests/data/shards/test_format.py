import hashlib
import tarfile
from pathlib import Path

import pytest
from imagenet_archives import special, tar

from seresnext.data.shards.format import Shard, list_shard
from seresnext.errors import DataError


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_is_listed(tmp_path: Path, form: int):
    long = "n" * 80 + "/" + "k" * (40 if form == tarfile.USTAR_FORMAT else 140)
    contents = [(f"{long}.jpg", b"one"), (f"{long}.json", b"{}"), (f"{long}.cls", b"2\n")]
    contents += [("b.png", b"two"), ("b.cls", b"0")]
    (tmp_path / "s.tar").write_bytes(tar(contents, form))
    shard, entries = list_shard(tmp_path / "s.tar", 3)
    content = (tmp_path / "s.tar").read_bytes()
    assert [content[e["offset"] : e["offset"] + e["size"]] for e in entries] == [b"one", b"two"]
    assert entries["label"].tolist() == [2, 0]
    assert shard == Shard("s.tar", len(content), 2, hashlib.sha256(content).hexdigest())


def test_members_of_an_image_may_be_apart(tmp_path: Path):
    (tmp_path / "s.tar").write_bytes(tar([("a.jpg", b"one"), ("b.jpg", b"two"), ("b.cls", b"1"), ("a.cls", b"0")]))
    assert list_shard(tmp_path / "s.tar", 2)[1]["label"].tolist() == [0, 1]


GOOD = [("a.jpg", b"one"), ("a.cls", b"1")]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([*GOOD, special("soft.jpg")], "'soft.jpg' is a symbolic link"),
        ([*GOOD, *GOOD], "'a.jpg' is there twice"),
        ([*GOOD, ("../b.jpg", b"x")], "'../b.jpg' has a name that leads outside"),
        ([*GOOD, ("b.jpg", b"x")], "'b.jpg' has no label; add b.cls"),
        ([*GOOD, ("b.cls", b"0")], "'b.cls' has no image; add b.jpg"),
        ([*GOOD, ("b.jpg", b"x"), ("b.png", b"x"), ("b.cls", b"0")], "'b.png' is a second image of the key 'b'"),
        ([*GOOD, ("b.jpg", b"x"), ("b.cls", b"3")], "'b.cls' has the label b'3'; write one of 0 to 2"),
        ([*GOOD, ("b.jpg", b"x"), ("b.cls", b"-1")], "'b.cls' has the label"),
        ([*GOOD, ("b.jpg", b"x"), ("b.cls", b"9" * 5000)], "'b.cls' has the label"),
        ([*GOOD, ("a.CLS", b"0")], "'a.CLS' is a second cls of the key 'a'"),
    ],
)
def test_a_hostile_or_odd_member_is_refused_by_name(tmp_path: Path, contents: list, message: str):
    (tmp_path / "s.tar").write_bytes(tar(contents))
    with pytest.raises(DataError) as caught:
        list_shard(tmp_path / "s.tar", 3)
    assert f"s.tar: member {message}" in str(caught.value)
    (tmp_path / "s.tar").write_bytes(tar(GOOD))
    assert list_shard(tmp_path / "s.tar", 3)[0].images == 1
