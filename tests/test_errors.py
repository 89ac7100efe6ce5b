"""How commands begin and end: streams that were closed, and no file in their place."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from seresnext.errors import address_in, expand_home, path_argument

SCRIPT = """
import sys
from pathlib import Path
from seresnext.errors import replace_closed_streams

replace_closed_streams()
with Path(sys.argv[1]).open("w") as checkpoint:
    assert checkpoint.fileno() > 2
    print("said")
    print("said", file=sys.stderr, flush=True)
    checkpoint.write("numbers")
"""


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", ""])
def test_nothing_that_is_said_goes_into_a_file(run_command, tmp_path, redirection):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = f"{sys.executable} {tmp_path}/script.py {tmp_path}/checkpoint {redirection}"
    result = run_command(["bash", "-c", command])
    assert result.returncode == 0, result.output
    assert (tmp_path / "checkpoint").read_text() == "numbers"
    assert result.stdout == ("" if ">&-" in redirection.replace("2>&-", "") else "said\n")
    assert result.stderr == ("" if "2>&-" in redirection else "said\n")


WAITS_IN_TORCH = """
import sys, threading, time
from seresnext.errors import ProcessEnd

end = ProcessEnd() if sys.argv[1] == "end" else sys
import torch.distributed as dist

store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
asked = threading.Event()

def ask():
    while True:
        store.multi_get(["key"])
        asked.set()

store.set("key", "value")
threading.Thread(target=ask, daemon=True).start()
asked.wait()
print("done")
end.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize(("how", "code", "expected"), [("end", 0, 0), ("end", 3, 3), ("sys", 0, -6)])
def test_a_thread_that_waits_inside_torch_does_not_change_how_a_process_ends(
    run_command, tmp_path, how, code, expected
):
    """The last case is the negative control: the interpreter's own end aborts."""
    (tmp_path / "script.py").write_text(WAITS_IN_TORCH)
    result = run_command([sys.executable, str(tmp_path / "script.py"), how, str(code)])
    assert result.returncode == expected, result.output
    assert (result.stdout == "done\n") if how == "end" else ("terminate called" in result.stderr)


END = """
import atexit, sys, threading, time
from seresnext.errors import ProcessEnd

end = ProcessEnd()
atexit.register(lambda: print("cleaned up"))
threading.Thread(target=lambda: (time.sleep(0.2), print("waited for"))).start()
if sys.argv[1] == "raise":
    raise ValueError("a defect")
end.exit(5)
"""


@pytest.mark.parametrize(("how", "code"), [("exit", 5), ("raise", 1)])
def test_the_end_waits_for_threads_cleans_up_and_writes_everything(run_command, tmp_path, how, code):
    (tmp_path / "script.py").write_text(END)
    result = run_command([sys.executable, str(tmp_path / "script.py"), how])
    assert result.returncode == code
    assert result.stdout == "waited for\ncleaned up\n"
    assert ("a defect" in result.stderr) == (how == "raise")


def test_output_that_cannot_be_written_is_not_taken_for_success(run_command, tmp_path):
    (tmp_path / "script.py").write_text(END.replace("end.exit(5)", "print('said'); end.exit(0)"))
    command = f"env -u PYTHONUNBUFFERED {sys.executable} {tmp_path}/script.py exit >/dev/full"
    assert run_command(["bash", "-c", command]).returncode == 120


@pytest.mark.parametrize("given", ["http://h/a", "https://h//a?x=//", "s3://b/a", "hf://a", "simplecache::s3://b/a"])
def test_an_address_is_no_path(given):
    assert address_in(given) == given
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        path_argument(given)
    assert given in str(caught.value)


def test_the_slash_that_a_path_loses_is_put_back():
    assert address_in(Path("https://host/a/b.pth")) == "https://host/a/b.pth"
    for path in ("a", "/a/b", "./https/a", "a:/b", "https:", "C:\\a"):
        assert address_in(path) is None
        assert path_argument(path) == Path(path)


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/house")
    assert path_argument("~/runs/a b") == expand_home(Path("~/runs/a b")) == Path("/house/runs/a b")
    for path in ("a/~", "./~", "~nobody-of-this-name/a"):
        assert path_argument(path) == Path(path)
