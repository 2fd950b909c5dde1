"""Ray clusters of several nodes on this machine, which nothing outside can reach: Ray does not stay on loopback, so
they run in a network namespace of their own, where nothing else is."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
ROOT = Path(__file__).resolve().parents[2]


def lacking() -> str:
    """What a test would need."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a network namespace needs Linux, and root"
    if shutil.which("unshare") is None or os.system("unshare -n true") != 0:
        return "unshare -n does not work here"
    return "" if find_spec("ray") is not None else "ray is not installed"


@contextmanager
def apart() -> Iterator[None]:
    """This thread, and those and the processes that it starts, without any network but lo."""
    import fcntl  # not on Windows

    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            asked = struct.pack("16sH14x", b"lo", 0)
            flags = struct.unpack("16sH14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, asked))[1]
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
        yield
    finally:
        libc.setns(before, CLONE_NEWNET)
        os.close(before)


class Nodes:
    def __init__(self, *cpus: int) -> None:
        from ray.cluster_utils import Cluster

        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._here = {one.pid for one in psutil.Process().children(recursive=True)}
        self._cluster: Any = Cluster()
        self._count = 0
        self.nodes = [self.add(each) for each in cpus]
        self.address: str = self._cluster.address

    def add(self, cpus: int) -> Any:
        self._count += 1
        return self._cluster.add_node(
            num_cpus=cpus, num_gpus=0, object_store_memory=80 << 20, node_name=f"node-{self._count}",
            **({"include_dashboard": False} if self._count == 1 else {}),
        )  # fmt: skip

    def remove(self, node: Any) -> None:
        self._cluster.remove_node(node, allow_graceful=False)

    def processes(self, name: str) -> list[psutil.Process]:
        """Those that were started here and have this in their command line."""
        found = []
        for one in psutil.Process().children(recursive=True):
            try:
                if one.pid not in self._here and name in " ".join(one.cmdline()):
                    found.append(one)
            except psutil.Error:
                pass
        return found

    def actors(self) -> list[psutil.Process]:
        return self.processes("ray::Node")

    def workers(self) -> list[psutil.Process]:
        """The processes that draw."""
        return [one for one in self.processes("-m") if "ray::" not in one.name() and _draws(one)]

    def shutdown(self) -> None:
        self._cluster.shutdown()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def _draws(process: psutil.Process) -> bool:
    line = process.cmdline()
    return any(module in line for module in ("sdcli.workers.child", "scripts.fragile_worker"))


@contextmanager
def nodes(*cpus: int) -> Iterator[Nodes]:
    """With as many CPUs each as given; the first is the head."""
    with apart(), tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short:
        before = {name: os.environ.get(name) for name in _ENVIRONMENT}
        os.environ.update(_ENVIRONMENT, RAY_TMPDIR=short, PYTHONPATH=str(ROOT))
        try:
            started = Nodes(*cpus)
            try:
                yield started
            finally:
                started.shutdown()
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "", "PYTHONPATH": "",
    "RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "10",  # lost nodes are missed soon
    "RAY_enable_worker_prestart": "0",
}  # fmt: skip
