"""Two hosts on one machine: network namespaces that a virtual cable (veth) joins. Linux, root and iproute2 are needed.

Each host has a name, an address, a loopback device, and processes that see only the processes of their own command.
The hosts share the file system and the processors of the machine.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from seresnext.errors import UsageError

_PREFIX = "seresnext-hosts"
_NAMES = ("host-a", "host-b")
_DEVICE = "eth0"
_ETC = Path("/etc/netns")  # `ip netns exec` mounts the files of a folder of this folder over those of /etc.
_BURST = 0.01  # seconds of sending at the full rate that the limit lets through at once

_RECEIVE = """
import socket, time
with socket.create_server(("", 29600)) as server:
    print("ready", flush=True)
    with server.accept()[0] as connection:
        began, count = time.monotonic(), 0
        while part := connection.recv(1 << 20):
            count += len(part)
        print(8e-6 * count / (time.monotonic() - began))
"""
_SEND = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 29600)) as connection:
    end = time.monotonic() + 1
    while time.monotonic() < end:
        connection.sendall(bytes(1 << 16))
"""


@dataclass(frozen=True)
class Host:
    """A host: a network namespace, the name of the host, and the address on the cable."""

    namespace: str
    name: str
    address: str

    def command(self, words: Sequence[str | Path]) -> list[str]:
        """Return the command that runs words on this host. The end of this command kills all processes of the words."""
        named = 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"'
        alone = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return ["ip", "netns", "exec", self.namespace, *alone, "sh", "-c", named, self.name, *map(str, words)]

    def cut(self) -> None:
        """Pull the cable at this host: packets are lost, and no connection is closed."""
        _run("ip", "-n", self.namespace, "link", "set", _DEVICE, "down")

    def join(self) -> None:
        """Plug the cable in."""
        _run("ip", "-n", self.namespace, "link", "set", _DEVICE, "up")

    def limit(self, megabits: float | None) -> None:
        """Limit the packets that this host sends, in megabits (10^6) a second. None removes the limit."""
        place = ("dev", _DEVICE, "root")
        if megabits is None:
            with suppress(UsageError):  # There was no limit.
                _run("tc", "-n", self.namespace, "qdisc", "del", *place)
            return
        burst = max(64_000, int(megabits * 1e6 / 8 * _BURST))
        shape = ("tbf", "rate", f"{megabits:.0f}mbit", "burst", str(burst), "latency", "100ms")
        _run("tc", "-n", self.namespace, "qdisc", "replace", *place, *shape)

    def sent(self) -> int:
        """Return the bytes that this host has sent over the cable."""
        (link,) = json.loads(_run("ip", "-n", self.namespace, "-s", "-j", "link", "show", _DEVICE))
        return link["stats64"]["tx"]["bytes"]


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make two hosts, and remove them with all of their processes at the end of the block.

    Hosts that an earlier, killed program has left are removed first. Raises UsageError if hosts cannot be made here.
    """
    if missing := [name for name in ("ip", "tc", "unshare") if shutil.which(name) is None]:
        raise UsageError(f"there is no program {missing[0]}; install iproute2 and util-linux")
    for namespace in _left():
        _remove(namespace)
    owner = f"{_PREFIX}-{os.getpid()}-{uuid.uuid4().hex[:4]}"
    hosts = [Host(f"{owner}-{name}", name, f"10.77.0.{number}") for number, name in enumerate(_NAMES, 1)]
    known = "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in hosts)
    with ExitStack() as stack:
        for host in hosts:
            stack.callback(_remove, host.namespace)
            _run("ip", "netns", "add", host.namespace)
            (_ETC / host.namespace).mkdir(parents=True)
            (_ETC / host.namespace / "hosts").write_text(known)
        ends = [("name", _DEVICE, "netns", host.namespace) for host in hosts]
        _run("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for host in hosts:
            _run("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", _DEVICE)
            _run("ip", "-n", host.namespace, "link", "set", "lo", "up")
            host.join()
        yield hosts[0], hosts[1]


def measure_megabits(sender: Host, receiver: Host) -> float:
    """Return the megabits (10^6) a second that a TCP connection between two hosts carries, sending for a second."""
    receiving = receiver.command([sys.executable, "-c", _RECEIVE])
    with subprocess.Popen(receiving, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        _run(*sender.command([sys.executable, "-c", _SEND, receiver.address]))
        return float(process.stdout.readline())


def _left() -> list[str]:
    """Return the namespaces of programs that have ended."""
    names = [line.split()[0] for line in _run("ip", "netns", "list").splitlines()]
    pids = {name: name.removeprefix(f"{_PREFIX}-").partition("-")[0] for name in names if name.startswith(_PREFIX)}
    return [name for name, pid in pids.items() if not Path("/proc", pid).exists()]


def _remove(namespace: str) -> None:
    """Kill all processes of a namespace, and remove the namespace. A namespace that does not exist is no error."""
    with suppress(UsageError):
        while pids := _run("ip", "netns", "pids", namespace).split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.02)
        _run("ip", "netns", "delete", namespace)
    shutil.rmtree(_ETC / namespace, ignore_errors=True)
    with suppress(OSError):  # Other namespaces have files there.
        _ETC.rmdir()


def _run(*words: str) -> str:
    """Return the output of a command. Raises UsageError with the reason of the command."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        raise UsageError(f"`{' '.join(words)}` failed ({reason}); two hosts on one machine need root and iproute2")
    return done.stdout
