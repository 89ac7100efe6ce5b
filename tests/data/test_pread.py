import os

from seresnext.data.pread import read_piece


def test_a_piece_is_whole_also_when_the_system_gives_it_in_parts(tmp_path, monkeypatch):
    content = bytes(range(256))
    (tmp_path / "file").write_bytes(content)
    real, calls = os.pread, []

    def at_most_seven(descriptor, size, offset):
        calls.append(size)
        return real(descriptor, min(size, 7), offset)

    monkeypatch.setattr(os, "pread", at_most_seven)
    with (tmp_path / "file").open("rb") as file:
        assert read_piece(file.fileno(), 50, 20) == content[50:70]
        assert calls == [20, 13, 6]
        assert read_piece(file.fileno(), 250, 20) == content[250:]
        assert read_piece(file.fileno(), 500, 20) == b""
        assert file.tell() == 0
