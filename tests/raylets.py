"""Ray clusters of several nodes on this machine, as ``ray start`` makes them.

`cluster` starts raylets side by side, with made-up CPUs, GPUs and accelerator types. With `hosts`
each has a network namespace and a disk of its own, mounted at the same path on all of them: nodes
reach each other only over addresses, and do not see what others write to their disks.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).parents[1]
PYTHON = sys.executable
STORE_BYTES = 100_000_000
_START_S = 120
_TRIES = 3


@dataclass(frozen=True)
class Place:
    """Where a node's processes run: this machine itself, or a network namespace of it."""

    address: str = "127.0.0.1"
    prefix: Sequence[str] = ()
    """Command that enters it."""
    disk: str = ""
    """A folder that only it sees; Ray's files and temporary ones are there."""


@dataclass(frozen=True)
class Node:
    """What a node claims to have."""

    cpus: int = 1
    gpus: int = 0
    kind: str = ""
    """Accelerator type."""
    environment: Mapping[str, str] = field(default_factory=dict)
    place: Place = Place()
    options: Sequence[str] = ()
    """More ones of ``ray start``."""


@dataclass
class Raylet:
    """A running node."""

    process: subprocess.Popen[bytes]
    log: Path

    def joined(self) -> bool:
        """Wait until the cluster knows it; false if it gives up, which Ray does after 30 s."""
        deadline = time.monotonic() + _START_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if "Ray runtime started." in self.log.read_text():
                return True
            time.sleep(0.1)
        return False

    def lose(self) -> None:
        """Kill -9 the raylet: its workers and its store go with it, as where a machine is lost."""
        found = [p for p in self._all() if Path(p.exe()).name == "raylet"]
        assert found
        for one in found:
            one.kill()
        self.process.wait(30)

    def stop(self) -> None:
        """End it with all it has started; nobody has to be told."""
        for one in [*self._all(), self.process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait()
        self.log.unlink()

    def _all(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


@dataclass
class Cluster:
    """A running cluster."""

    address: str
    environment: dict[str, str]
    """Of a driver."""
    place: Place
    """Of the head, where drivers run."""
    nodes: list[Raylet]

    def python(self, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run Python on the head's host to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """The same, without waiting; killed on the way out if it still runs."""
        process = subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def command(self, *arguments: str) -> list[str]:
        """Python with these arguments on the head's host."""
        return [*self.place.prefix, PYTHON, *arguments]

    def add(self, node: Node) -> Raylet:
        """Let another node join."""
        raylet = _start(node, [f"--address={self.address}"], self.environment)
        self.nodes.append(raylet)
        return raylet


@contextmanager
def cluster(*nodes: Node, port: int = 0) -> Iterator[Cluster]:
    """Start these nodes, the head first; end all of them on the way out."""
    folder = nodes[0].place.disk or _short_folder()
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": _path()}
    environment.pop("RAY_ADDRESS", None)
    head, port = nodes[0], port or free_port()
    options = ["--head", f"--port={port}", f"--temp-dir={folder}"]
    options += ["--include-dashboard=false", f"--ray-client-server-port={free_port()}"]
    with ExitStack() as held:
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        found = Cluster(f"{head.place.address}:{port}", environment, head.place, [])
        held.callback(lambda: [node.stop() for node in reversed(found.nodes)])
        found.nodes.append(_start(head, options, environment))
        for node in nodes[1:]:
            found.add(node)
        yield found


@contextmanager
def hosts(count: int) -> Iterator[list[Place]]:
    """Network namespaces on one bridge, each with a disk of its own.

    Skips the test where this kernel, or this user, may not make them.
    """
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces take root and iproute2")
    tag = f"fw{os.getpid()}"
    switch = f"{tag}s"
    names = [f"{tag}h{n}" for n in range(count)]
    with ExitStack() as held:
        for name in (switch, *names):
            _ip("netns", "add", name)
            held.callback(_ip, "netns", "del", name)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for n, name in enumerate(names):
            outer = f"port{n}"
            _ip("link", "add", "eth", "netns", name, "type", "veth",
                "peer", "name", outer, "netns", switch)  # fmt: skip
            _ip("-n", switch, "link", "set", outer, "master", "bridge", "up")
            _ip("-n", name, "addr", "add", f"10.77.0.{n + 1}/24", "dev", "eth")
            _ip("-n", name, "link", "set", "eth", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        disk = _short_folder()
        held.callback(shutil.rmtree, disk, ignore_errors=True)
        yield [held.enter_context(_host(n, name, disk)) for n, name in enumerate(names)]


@contextmanager
def _host(number: int, name: str, disk: str) -> Iterator[Place]:
    """A host, held open by a process that sleeps in it."""
    own = f"mount -t tmpfs tmpfs {disk} && echo ready && exec sleep 3600"
    command = ["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-c", own]
    keeper = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert keeper.stdout is not None
    try:
        assert keeper.stdout.readline() == "ready\n"
        enter = ["nsenter", f"--target={keeper.pid}", "--net", "--mount", f"--wdns={REPOSITORY}"]
        prefix = [*enter, "--", "env", f"TMPDIR={disk}"]
        yield Place(f"10.77.0.{number + 1}", prefix, disk)
    finally:
        keeper.kill()
        keeper.wait()
        keeper.stdout.close()


def _short_folder() -> str:
    """Ray's sockets lie in it, whose paths must be short."""
    return tempfile.mkdtemp(prefix="fw-", dir="/tmp")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this kernel has no such networks: ip {' '.join(arguments)}: {done.stderr}")


def _start(node: Node, options: Sequence[str], environment: Mapping[str, str]) -> Raylet:
    resources = {f"accelerator_type:{node.kind}": 1} if node.kind else {}
    ray = str(Path(PYTHON).with_name("ray"))
    command = [*node.place.prefix, ray, "start", "--block", "--disable-usage-stats", *options]
    command += [f"--num-cpus={node.cpus}", f"--num-gpus={node.gpus}"]
    command += [f"--resources={json.dumps(resources)}", f"--object-store-memory={STORE_BYTES}"]
    command += [f"--node-ip-address={node.place.address}"]
    # By default those of any other node on this machine.
    for name in ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port"):
        command.append(f"--{name}={free_port()}")
    command += ["--min-worker-port=0", "--max-worker-port=0", *node.options]
    for _ in range(_TRIES):
        raylet = _run(command, {**environment, **node.environment})
        if raylet.joined():
            return raylet
        said = raylet.log.read_text()
        raylet.stop()
    pytest.fail(f"a node does not start:\n{said[-2_000:]}")


def _run(command: Sequence[str], environment: Mapping[str, str]) -> Raylet:
    with tempfile.NamedTemporaryFile(prefix="fw-", suffix=".log", delete=False) as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    return Raylet(process, Path(log.name))


def _path() -> str:
    """Workers import the code under test, and the tests' own steps."""
    return os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "ray")])


_given: set[int] = set()


def free_port() -> int:
    """A port that nobody uses and nobody was told of before.

    None of those that Ray gives its workers, which are lower, or the kernel its clients.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            free = port not in _given and probe.connect_ex(("127.0.0.1", port)) != 0
        if free:
            _given.add(port)
            return port


def wait_until(what: object, seconds: float = 180.0) -> None:
    """Ask again and again until the function says yes."""
    assert callable(what)
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
