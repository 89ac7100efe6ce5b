"""Mistakes in the words of a benchmark: one message, and the exit code."""

import pytest
from benchmark import loader, step, validate

from seresnext.errors import Failure


@pytest.mark.parametrize(
    ("module", "words", "code", "text"),
    [
        (loader, "--data nowhere", 3, "nowhere"),
        (loader, "--batch 99", 3, "--batch"),
        (loader, "--peer-python dali=nowhere", 2, "--peer-python"),
        (loader, "--batch 4 --peer ffcv", 2, "the peer ffcv.*No module named 'ffcv"),
        (step, "--ranks 2 --peer timm", 2, "--peer is for one process"),
        (step, "--model seresnext27", 2, "seresnext27"),
        (validate, "--data seresnext", 3, "seresnext has no class folder"),
        (validate, "--timm-checkout nowhere", 2, "nowhere has no validate.py"),
    ],
    ids=str,
)
def test_mistakes(measure, tiny_image_folder, tmp_path, monkeypatch, module, words, code, text):
    (tmp_path / "seresnext").mkdir()
    monkeypatch.chdir(tmp_path)
    data = ["--data", tiny_image_folder()] if module is loader else []
    with pytest.raises(Failure, match=text) as failure:
        measure(module, *data, *words.split())
    assert failure.value.exit_code == code
