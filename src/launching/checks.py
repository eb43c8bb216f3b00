"""What can be known to fail before anything is started: wrong settings, a port in use, workers left over."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from src.launching.processes import Identity, alive, read_identity

DEFAULT_PORT = 8118
CLUSTER_SECONDS = 600  # how long the first machine waits for the last one
NAME_SECONDS = 60.0  # how long a host name may take to be known: clusters enter it while the machines start
NODE_FILES = {"GPU": "nvidia[0-9]*", "Ascend": "davinci[0-9]*"}  # in /dev


@dataclass(frozen=True)
class Cluster:
    """The processes of a run: `devices` on each of `nodes` machines, of which this is number `node`.

    The scheduler listens on address:port, on machine 0. timeout: seconds to wait for all processes to turn up.
    """

    devices: int
    nodes: int = 1
    node: int = 0
    address: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    timeout: int = CLUSTER_SECONDS

    @property
    def ranks(self) -> range:
        """The ranks on this machine."""
        return range(self.node * self.devices, (self.node + 1) * self.devices)

    @property
    def world_size(self) -> int:
        return self.nodes * self.devices


def read_number(environ: Mapping[str, str], name: str, default: int, lowest: int, highest: int) -> int:
    """An integer of the environment. Raises ValueError that names the variable and what it may be."""
    text = environ.get(name) or str(default)
    if not text.isdigit() or not lowest <= int(text) <= highest:
        raise ValueError(f"{name}={text} in the environment: must be a whole number from {lowest} to {highest}")
    return int(text)


def read_cluster(environ: Mapping[str, str], devices: int) -> Cluster:
    """NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT (PORT is its older name) and CLUSTER_TIMEOUT as a Cluster.

    Raises ValueError for values that cannot be and for several machines without an address.
    """
    nodes = read_number(environ, "NNODES", 1, 1, 4096)
    node = read_number(environ, "NODE_RANK", 0, 0, nodes - 1)
    name = "PORT" if "PORT" in environ and "MASTER_PORT" not in environ else "MASTER_PORT"
    port = read_number(environ, name, DEFAULT_PORT, 1024, 65535)
    address = environ.get("MASTER_ADDR") or "127.0.0.1"
    if nodes > 1 and not environ.get("MASTER_ADDR"):
        raise ValueError(f"NNODES={nodes} needs MASTER_ADDR=address of machine 0, the same on all machines")
    if nodes > 1 and not environ.get("NODE_RANK"):
        raise ValueError(f"NNODES={nodes} needs NODE_RANK=0 to {nodes - 1}, another one on each machine")
    timeout = read_number(environ, "CLUSTER_TIMEOUT", CLUSTER_SECONDS, 1, 86400)
    return Cluster(devices, nodes, node, address, port, timeout)


def count_devices(target: str, given: int | None, folder: str | Path = "/dev") -> int:
    """How many processes to start on this machine: as given, else one for each GPU or Ascend device.

    Raises ValueError where more are asked for than the machine has, and where nothing tells the number.
    """
    found = len(list(Path(folder).glob(NODE_FILES[target]))) if target in NODE_FILES else 0
    if given is None:
        if not found:
            raise ValueError(
                f"how many processes? With device.target {target} nothing here tells; write the number after CONFIG"
            )
        return found
    if given < 1 or (found and given > found):
        limit = f"from 1 to {found}, the {target} devices in {folder}" if found else "at least 1"
        raise ValueError(f"DEVICES is {given}; it must be {limit}")
    return given


def is_local(address: str, seconds: float = NAME_SECONDS) -> bool:
    """Whether an address or host name is one of this machine's. Raises ValueError where it stays unknown."""
    until = time.monotonic() + seconds
    while True:
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
            break
        except socket.gaierror as error:
            if time.monotonic() > until:
                message = f"MASTER_ADDR={address} cannot be resolved ({error.strerror}); give an IP address"
                raise ValueError(message) from error
            time.sleep(1.0)
    with socket.socket(family, kind, protocol) as probe:
        try:
            probe.bind(place)
        except OSError:
            return False
    return True


def check_address(cluster: Cluster) -> None:
    """Raises ValueError unless the address is this machine's just where this is machine 0."""
    local = is_local(cluster.address)
    if cluster.node == 0 and not local:
        raise ValueError(
            f"MASTER_ADDR={cluster.address} is no address of this machine, which NODE_RANK=0 says is machine 0; "
            "`ip -brief address` lists its addresses"
        )
    if cluster.node > 0 and local:
        raise ValueError(
            f"MASTER_ADDR={cluster.address} is an address of this machine, but NODE_RANK={cluster.node}; it must be "
            "that of machine 0. Several processes on one machine are DEVICES, not NNODES"
        )


def check_port(cluster: Cluster) -> None:
    """Raises ValueError where the scheduler, which starts on machine 0, could not listen on the port."""
    if cluster.node > 0:
        return
    family, kind, protocol, _, place = socket.getaddrinfo(cluster.address, cluster.port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that fade out are no hindrance
        try:
            probe.bind(place)
        except OSError as error:
            raise ValueError(
                f"port {cluster.port} of {cluster.address} cannot be had ({error.strerror}){port_user(cluster.port)}; "
                f"end that, or choose another port: MASTER_PORT={cluster.port + 1} (the same on all machines)"
            ) from error


def port_user(port: int) -> str:
    """`: process 12 (python train.py ...) listens there`, as far as this user may see it."""
    try:
        pids = [c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port]
        command = " ".join(psutil.Process(pids[0]).cmdline())[:120]
    except (psutil.Error, IndexError, TypeError, OSError):
        return ""
    return f": process {pids[0]} ({command}) listens there"


def left_over(logs: Path) -> list[tuple[str, Identity]]:
    """(role, process) of every process of earlier starts of a run that is still alive on this machine."""
    noted = [(file.stem, read_identity(file)) for file in sorted(logs.glob("start_*/*.pid"))]
    return [(role, process) for role, process in noted if alive(process)]


def check_left_over(logs: Path) -> None:
    """Raises ValueError that lists processes of the same run that live: two would write the same checkpoints."""
    found = left_over(logs)
    if found:
        workers = " ".join(str(process.pid) for role, process in found if role != "scheduler")
        schedulers = " ".join(str(process.pid) for role, process in found if role == "scheduler")
        raise ValueError(
            f"this run ({logs.parent}) still has processes on this machine: "
            + ", ".join(f"{role} is {process.pid}" for role, process in found)
            + ". End them, so that they save first:"
            + (f" kill {workers}" if workers else "")
            + (f"; then kill -9 {schedulers}" if schedulers else "")
            + ". Or give the new run another name=..."
        )


@contextmanager
def only_launcher(logs: Path, node: int) -> Iterator[None]:
    """Within it no other launcher of the run can start on this machine. Raises ValueError where one is active."""
    with (logs / f"node_{node}.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ValueError(
                f"the run {logs.parent} is active: process {file.read()} has started it. Stop it with kill, which lets "
                "it save, or give the new run another name=..."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
