"""The end of a process: closed streams, full disks, threads that wait inside torch."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from seresnext.errors import UsageError
from seresnext.process.exit import exit_code_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_program(run_command, tmp_path):
    """`run_program(text, words)`: run a program by bash, with redirections."""

    def run_program(text, words="", options=""):
        (tmp_path / "script.py").write_text(text)
        command = f"env -u PYTHONUNBUFFERED {sys.executable} {options} {tmp_path}/script.py {words}"
        return run_command(["bash", "-c", command])

    return run_program


SCRIPT = """
import sys
from pathlib import Path
from seresnext.process.exit import replace_closed_streams

replace_closed_streams()
with Path(sys.argv[1]).open("w") as checkpoint:
    assert checkpoint.fileno() > 2
    print("said")
    print("said", file=sys.stderr, flush=True)
    checkpoint.write("numbers")
"""


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", ""])
def test_nothing_that_is_said_goes_into_a_file(run_program, tmp_path, redirection):
    result = run_program(SCRIPT, f"{tmp_path}/checkpoint {redirection}")
    assert result.returncode == 0, result.output
    assert (tmp_path / "checkpoint").read_text() == "numbers"
    assert result.stdout == ("" if ">&-" in redirection.replace("2>&-", "") else "said\n")
    assert result.stderr == ("" if "2>&-" in redirection else "said\n")


WAITS_IN_TORCH = """
import sys, threading, time
from seresnext.process.exit import ProcessEnd

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


@pytest.mark.parametrize(("how", "code", "expected"), [("end", 3, 3), ("sys", 0, 134)])
def test_a_thread_that_waits_inside_torch_does_not_change_how_a_process_ends(run_program, how, code, expected):
    """The last case is the negative control: the interpreter's teardown aborts."""
    result = run_program(WAITS_IN_TORCH, f"{how} {code}; exit $?")
    assert result.returncode == expected, result.output
    assert (result.stdout == "done\n") if how == "end" else ("terminate called" in result.stderr)


END = """
import atexit, sys, threading, time
from seresnext.process.exit import ProcessEnd

end = ProcessEnd()
atexit.register(lambda: print("cleaned up"))
threading.Thread(target=lambda: (time.sleep(0.2), print("waited for"))).start()
if sys.argv[1] == "raise":
    raise ValueError("a defect")
end.exit(5)
"""


@pytest.mark.parametrize(("how", "code"), [("exit", 5), ("raise", 1)])
def test_the_end_waits_for_threads_cleans_up_and_writes_everything(run_program, how, code):
    result = run_program(END, how)
    assert result.returncode == code
    assert result.stdout == "waited for\ncleaned up\n"
    assert ("a defect" in result.stderr) == (how == "raise")


def test_output_that_cannot_be_written_is_an_error(run_program):
    assert run_program(END.replace("end.exit(5)", "print('said'); end.exit(0)"), "exit >/dev/full").returncode == 120


FULL_DISK = """
import sys
from pathlib import Path
from seresnext.errors import UsageError
from seresnext.process.exit import run_script

def main():
    print("x" * int(sys.argv[2]))
    if sys.argv[1] == "refuse":
        raise UsageError("refused")
    if sys.argv[1] == "exit":
        sys.exit(0)
    if sys.argv[1] == "defect":
        Path("/dev/full").write_text("x")

run_script(main)
"""


@pytest.mark.parametrize(
    ("options", "size", "how"),
    [
        ("", 3, "end"),
        ("", 3, "refuse"),
        ("", 3, "exit"),
        ("-u", 3, "refuse"),
        ("", 10**5, "refuse"),
        ("-u", 10**5, "end"),
    ],
)
def test_a_script_on_a_full_disk_ends_with_one_line(run_program, options, size, how):
    result = run_program(FULL_DISK, f"{how} {size} >/dev/full", options)
    assert result.returncode == 120, result.output
    *others, line = result.stderr.splitlines()
    assert "standard output" in line
    assert "No space left" in line
    assert all(other.startswith("error: refused") for other in others)


def test_the_error_of_another_file_keeps_its_traceback(run_program):
    result = run_program(FULL_DISK, "defect 3")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "/dev/full" in result.stderr


PRINTS = """
import sys
from seresnext.errors import UsageError
from seresnext.process.exit import run_script

def main():
    print("K\\xe4fer \\u732b \\udc80", flush=True)
    for number in range(30_000):
        print(number)
    raise UsageError("no K\\xe4fer \\u732b")

run_script(main)
"""
SHOWN = {
    "utf-8": "K\xe4fer \u732b \\udc80",
    "latin-1": "K\xe4fer \\u732b \\udc80",
    "ascii": "K\\xe4fer \\u732b \\udc80",
}


PIPED = [("utf-8", "-u", "| head -n 1"), ("ascii", "", "| head -n 1")]


@pytest.mark.parametrize(("encoding", "options", "pipe"), [*((name, "", "") for name in SHOWN), *PIPED])
def test_scripts_print_under_any_encoding_and_to_a_closed_pipe(tmp_path, encoding, options, pipe):
    (tmp_path / "script.py").write_text(PRINTS)
    command = f"set -o pipefail; {sys.executable} {options} {tmp_path}/script.py {pipe}"
    result = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, timeout=60
    )
    assert result.returncode == 2, result.stderr
    lines = result.stdout.decode(encoding).splitlines()
    assert lines[0] == SHOWN[encoding]
    assert len(lines) == (1 if pipe else 30_001)
    error = result.stderr.decode(encoding)
    assert error == f"error: no {SHOWN[encoding].removesuffix(' ' + chr(92) + 'udc80')}\n"


def test_every_program_ends_with_run_script_or_main():
    """A program is a script, or a `__main__` of the package."""
    programs = [*(ROOT / "scripts").glob("[a-z]*.py"), *(ROOT / "seresnext").rglob("__main__.py")]
    assert len(programs) >= 5
    for program in programs:
        last = program.read_text(encoding="utf-8").rpartition("__main__")[2]
        assert "    run_script(main" in last or "    main()" in last, program


@pytest.mark.parametrize(
    "program", ["-m seresnext train --recipe digits --print-recipe", "train.py --recipe cifar10 --print-recipe"]
)
def test_a_closed_pipe_is_not_an_error(run_command, program):
    command = f"set -o pipefail; {sys.executable} -u {program} | head -n 1"
    result = run_command(["bash", "-c", command])
    assert result.returncode == 0, result.output
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


@pytest.mark.parametrize("error", [AttributeError("a module without attributes"), UsageError("a package is missing")])
@pytest.mark.parametrize("interrupts", [True, False])
def test_an_error_that_ctrl_c_caused_is_an_interrupt(interrupts, error, capsys):
    """A library that is interrupted in the middle of an import raises any error, which can become a Failure."""
    before = signal.getsignal(signal.SIGINT)

    def main():
        with suppress(KeyboardInterrupt):
            if interrupts:
                signal.raise_signal(signal.SIGINT)
        raise error

    if interrupts:
        assert exit_code_of(main) == 130
        assert capsys.readouterr().err == "interrupted\n"
    elif isinstance(error, UsageError):
        assert exit_code_of(main) == 2
    else:
        with pytest.raises(AttributeError):
            exit_code_of(main)
    assert signal.getsignal(signal.SIGINT) is before
