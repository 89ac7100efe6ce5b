"""The table of classes, against timm's copy and facts that others publish, and the development kit."""

import gzip
from importlib.resources import files
from pathlib import Path

import pytest
from imagenet_archives import TRUTH, VAL_CLASSES, devkit, special, tar

from seresnext.data.readers.imagenet_classes import imagenet_classes, read_validation_classes
from seresnext.errors import DataError

INFO = files("timm.data") / "_info"


def test_wordnet_ids_are_timms_in_the_same_order():
    ids = [row.wordnet_id for row in imagenet_classes()]
    assert ids == (INFO / "imagenet_synsets.txt").read_text().split()
    assert ids == sorted(ids)
    assert (len(set(ids)), ids[0], ids[-1]) == (1000, "n01440764", "n15075141")


def test_names_are_timms():
    lines = (INFO / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    theirs = dict(line.split("\t") for line in lines)
    assert {row.wordnet_id: ", ".join(row.names) for row in imagenet_classes()}.items() <= theirs.items()


# The first numbers of the kit's ground truth file, and the labels that Caffe's val.txt, made of the same images with
# sorted WordNet ids, has for them: two files that were published apart.
GROUND_TRUTH = [490, 361, 171, 822, 297, 482, 13, 704, 599, 164, 649, 11, 73, 286, 554, 6, 648, 399, 749, 545]
SORTED_LABELS = [65, 970, 230, 809, 516, 57, 334, 415, 674, 332, 109, 286, 370, 757, 595, 147, 108, 23, 478, 517]


def test_numbers_lead_to_the_labels_that_others_publish():
    labels = {row.ilsvrc_id: label for label, row in enumerate(imagenet_classes())}
    assert [labels[number] for number in GROUND_TRUTH] == SORTED_LABELS
    # The classic mistake would be seen.
    assert all(number - 1 != label for number, label in zip(GROUND_TRUTH, SORTED_LABELS, strict=True))


def test_numbers_that_the_challenge_lists():
    rows = {row.ilsvrc_id: (row.wordnet_id, row.names[0]) for row in imagenet_classes()}
    assert [rows[number] for number in (1, 2, 3, 4, 10, 1000)] == [
        ("n02119789", "kit fox"), ("n02100735", "English setter"), ("n02110185", "Siberian husky"),
        ("n02096294", "Australian terrier"), ("n02123394", "Persian cat"), ("n03255030", "dumbbell"),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ the kit


@pytest.fixture
def kit(tmp_path: Path):
    """`kit(content)`: the path of a packed development kit."""

    def write(content: bytes) -> Path:
        (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(content)
        return tmp_path / "ILSVRC2012_devkit_t12.tar.gz"

    return write


def test_lines_become_wordnet_ids(kit):
    assert read_validation_classes(kit(devkit(VAL_CLASSES))) == VAL_CLASSES


@pytest.mark.parametrize(("line", "shown"), [("0", "'0'"), ("1001", "'1001'"), ("x", "'x'"), ("\u0661", "")])
def test_a_number_that_is_no_class_is_named_with_its_line(kit, line: str, shown: str):
    content = tar({f"data/{TRUTH}": f"1\n1000\n{line}\n".encode()})
    with pytest.raises(DataError, match=rf"ground_truth.txt:3 has {shown}.*no class"):
        read_validation_classes(kit(gzip.compress(content)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>please log in</html>", "cannot be read: Not a gzipped file"),
        (devkit(VAL_CLASSES)[:-200], "cannot be read: Compressed file ended"),
        (gzip.compress(tar({"readme.txt": b""})), f"holds 0 files {TRUTH}"),
        (gzip.compress(tar({f"a/{TRUTH}": b"1", f"b/{TRUTH}": b"2"})), f"holds 2 files {TRUTH}"),
        (gzip.compress(tar([special(f"data/{TRUTH}")])), f"member 'data/{TRUTH}' is a symbolic link"),
    ],
    ids=["no archive", "cut off", "no truth", "two truths", "a link"],
)
def test_other_files_are_no_kit(kit, content: bytes, message: str):
    with pytest.raises(DataError, match=message):
        read_validation_classes(kit(content))
