"""The launcher tells the truth: exit codes, the first rank that failed, what became of the others."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.constants import DIVERGED, MISUSE
from src.launching.checks import Cluster, check_left_over, count_devices, read_cluster
from src.launching.diagnosis import error_line, last_lines, next_step
from src.launching.processes import identify, note_identity
from tests.commands import ROOT
from tests.launching import Job, end, free_port, lives, make_job


@pytest.fixture
def job(tmp_path) -> Job:
    return make_job(tmp_path)


def workers_of(job: Job, start: int = 1) -> dict[str, int]:
    """Process ids by name, as noted at one of the starts."""
    folder = job.logs / f"start_{start:03d}_node_0"
    return {file.stem: json.loads(file.read_text())["pid"] for file in folder.glob("*.pid")}


def test_success_is_zero_and_each_rank_has_its_log(job):
    code, out, err = job.run({"0": ["print loss 0.5"], "1": ["print quiet"]}, "2", "seed=4")
    assert code == 0, err
    assert "loss 0.5" in out and "quiet" not in out  # the console is rank 0's
    folder = job.logs / "start_001_node_0"
    assert "quiet" in (folder / "worker_1.log").read_text()
    assert f"['--config', '{job.root}/tiny.yaml', 'seed=4']" in (folder / "worker_0.log").read_text()
    assert set(workers_of(job)) == {"scheduler", "worker_0", "worker_1"}
    assert job.run({}, "2")[0] == 0 and (job.logs / "start_002_node_0").is_dir()


def test_the_first_rank_that_fails_is_named_and_the_others_end(job):
    plan = {
        "0": ["trap", "sleep 60"], "1": ["sleep 0.5", "print EI0006: Getting socket times out", "exit 7"],
        "2": ["child", "sleep 60"], "scheduler": ["sleep 60"],
    }  # fmt: skip
    began = time.monotonic()
    code, _, err = job.run(plan, "3")
    assert code == 1 and time.monotonic() - began < 30
    assert "worker_1 failed first: it ended with code 7" in err and "    EI0006: Getting socket" in err
    assert "HCCL_CONNECT_TIMEOUT" in err
    assert not any(lives(pid) for pid in workers_of(job).values())
    assert not lives(int((job.root / "child.pid").read_text()))


@pytest.mark.parametrize("final", [MISUSE, DIVERGED])
def test_a_code_after_which_no_start_helps_is_handed_through(job, final):
    code, _, err = job.run({"0": [f"exit {final}"]}, "1", RETRIES="2")
    assert code == final and "starts again" not in err


def test_a_killed_rank_is_a_failure(job):
    code, _, err = job.run({"0": ["sleep 60"], "1": ["sleep 0.3", "kill"]}, "2")
    assert code == 1 and "worker_1 failed first: it was killed by SIGKILL" in err and "dmesg" in err


def test_a_rank_that_will_not_end_is_killed(job):
    program = short_limits()
    code, _, err = job.run({"0": ["deaf", "sleep 60"], "1": ["sleep 0.5", "exit 1"]}, "2", program=program)
    assert code == 1 and "worker_0 did not end in time and had to be killed" in err
    assert not any(lives(pid) for pid in workers_of(job).values())


def short_limits() -> tuple[str, ...]:
    """The launcher with limits of fractions of a second."""
    return (sys.executable, "-c", SHORT.format(root=ROOT))


SHORT = """import sys; sys.path.insert(0, "{root}"); sys.argv[0] = "launch.py"
from tools import launch
from src.launching.group import Limits
launch.PAUSE, launch.Limits = 0.1, lambda: Limits(failure=0.5, stop=0.5, scheduler=0.2)
launch.cli.run(launch.main)
"""


def test_a_scheduler_that_dies_ends_the_run(job):
    code, _, err = job.run({"0": ["trap", "sleep 60"], "1": ["sleep 60"], "scheduler": ["sleep 0.3", "exit 4"]}, "2")
    assert code == 1 and "scheduler failed first: it ended with code 4" in err


def test_misuse_is_two_and_not_tried_again(job):
    code, _, err = job.run({"0": ["exit 2"], "1": ["sleep 60"]}, "2", RETRIES="3")
    assert code == 2 and "starts again" not in err and len(list(job.logs.glob("start_*"))) == 1
    code, _, err = job.run({}, "2", "train.stepz=3")
    assert code == 2 and "train.steps" in err and len(list(job.logs.glob("start_*"))) == 1  # told before any start


@pytest.mark.parametrize("ending", ["exit 85", "exit 1", "kill"])
def test_retries_start_again(job, ending):
    program = short_limits()
    plan = {"0": [f"first {ending}"], "1": ["first exit 85"] if ending == "exit 85" else ["sleep 0.2"]}
    code, _, err = job.run(plan, "2", program=program, RETRIES="2")
    assert code == 0 and "retry 1 of 2" in err and len(list(job.logs.glob("start_*"))) == 2


def test_retries_run_out(job):
    program = short_limits()
    code, _, err = job.run({"0": ["exit 85"], "1": ["exit 85"]}, "2", program=program, RETRIES="2")
    assert code == 85 and "all 2 RETRIES are used up" in err and len(list(job.logs.glob("start_*"))) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_stop_reaches_the_workers_and_is_waited_for(job, number):
    process = job.start({"0": ["trap", "sleep 60"], "1": ["trap", "sleep 60"]}, "2", RETRIES="5")
    job.await_files("0.trapped", "1.trapped")
    process.send_signal(number)
    code, out, err = end(process)
    assert code == 85 and "starts again" not in err  # who asked for the stop does not want a new start
    for rank in (0, 1):
        log = (job.logs / "start_001_node_0" / f"worker_{rank}.log").read_text()
        assert f"got {signal.Signals(number).name}" in log
    assert f"got {signal.Signals(number).name}" in out


def test_a_second_interrupt_ends_the_run_at_once(job):
    process = job.start(
        {"0": ["busy", "sleep 60", "sleep 60"], "1": ["busy", "sleep 60", "sleep 60"]}, "2", RETRIES="5"
    )
    job.await_files("0.trapped", "1.trapped")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert end(process)[0] == 130


def test_a_stop_before_the_workers_listen_can_be_gone_on_from(job):
    process = job.start({"0": ["print ready", "sleep 60"], "1": ["sleep 60"]}, "2")
    while "ready" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 85


def script(job: Job, name: str) -> tuple[str, ...]:
    """A script of scripts/ in a copy of the repository whose environment is the one that runs this test."""
    copy = job.root / "copy"
    (copy / "scripts").mkdir(parents=True)
    for entry in ("tools", "src", "train.py", "config"):
        (copy / entry).symlink_to(ROOT / entry)
    (copy / "scripts" / name).write_text((ROOT / "scripts" / name).read_text())
    path = Path(sys.executable).parent
    (copy / "scripts" / "environment.sh").write_text(f'use_environment() {{ export PATH="{path}:$PATH"; }}\n')
    return ("bash", str(copy / "scripts" / name))


def test_the_distributed_script_hands_signals_and_codes_through(job):
    program = script(job, "run_distribute_train.sh")
    process = job.start({"0": ["trap", "sleep 60"], "1": ["trap", "sleep 60"]}, "2", program=program)
    job.await_files("0.trapped", "1.trapped")
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 85
    assert not any(lives(pid) for pid in workers_of(job).values())
    assert subprocess.run(program, capture_output=True).returncode != 0  # no CONFIG


def test_the_standalone_script_starts_again_and_hands_signals_through(job):
    program = script(job, "run_standalone_train.sh")
    code, out, err = job.run({"alone": ["first exit 85", "print end"]}, "seed=1", program=program, RETRIES="1")
    assert code == 0 and "was stopped, its steps saved; starts again" in err and "end" in out
    assert job.run({"alone": ["exit 2"]}, "seed=1", program=program, RETRIES="1")[0] == 2
    process = job.start({"alone": ["trap", "sleep 60"]}, "seed=1", program=program, RETRIES="1")
    job.await_files("alone.trapped")
    process.send_signal(signal.SIGTERM)
    code, out, err = end(process)
    assert code == 85 and "got SIGTERM" in out and "starts again" not in err


def test_a_port_in_use_is_refused_with_its_user(job):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, _, err = job.run({}, "2", MASTER_PORT=str(port))
    assert code == 2 and f"port {port} of 127.0.0.1" in err and str(os.getpid()) in err
    assert f"MASTER_PORT={port + 1}" in err and not list(job.logs.glob("start_*"))


def test_left_over_workers_are_refused(job):
    process = job.start({"0": ["trap", "sleep 60"], "1": ["trap", "sleep 60"]}, "2")
    job.await_files("0.trapped", "1.trapped")
    code, _, err = job.run({}, "2")
    assert code == 2 and f"process {process.pid} has started it" in err
    process.kill()  # the launcher itself dies, its workers stay
    process.communicate()
    workers = workers_of(job)
    code, _, err = job.run({}, "2")
    assert code == 2 and f"kill {workers['worker_0']} {workers['worker_1']}" in err
    for name in ("worker_0", "worker_1"):
        os.kill(workers[name], signal.SIGTERM)
    while any(lives(pid) for pid in workers.values()):
        time.sleep(0.05)
    assert job.run({}, "2")[0] == 0


def test_a_reused_process_id_is_no_left_over(tmp_path):
    folder = tmp_path / "logs" / "start_001_node_0"
    folder.mkdir(parents=True)
    note_identity(folder / "worker_0.pid", os.getpid())
    with pytest.raises(ValueError, match=f"worker_0 is {os.getpid()}"):
        check_left_over(tmp_path / "logs")
    mine = identify(os.getpid())
    for other in ({"start": mine.start - 1, "boot": mine.boot}, {"start": mine.start, "boot": "another machine"}):
        (folder / "worker_0.pid").write_text(json.dumps({"pid": mine.pid, **other}))
        check_left_over(tmp_path / "logs")


def test_an_msrun_that_fails_is_reported(job):
    code, _, err = job.run({}, "2", FAKE_MSRUN_EXIT="7")
    assert code == 1 and "did not start" in err and "ValueError: no such thing" in err


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"NNODES": "2", "NODE_RANK": "0"}, "needs MASTER_ADDR"),
        ({"NNODES": "2", "MASTER_ADDR": "h"}, "needs NODE_RANK"),
        ({"NNODES": "2", "NODE_RANK": "2"}, "NODE_RANK=2 .* from 0 to 1"),
        ({"NNODES": "two"}, "NNODES=two"),
        ({"PORT": "80"}, "PORT=80 .* from 1024"),
    ],
)
def test_wrong_settings_of_several_machines_are_refused(environ, message):
    with pytest.raises(ValueError, match=message):
        read_cluster(environ, 2)


def test_settings_of_several_machines():
    environ = {"NNODES": "3", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "9000", "PORT": "9001"}
    cluster = read_cluster(environ, 4)
    assert cluster == Cluster(4, 3, 1, "10.0.0.1", 9000) and list(cluster.ranks) == [4, 5, 6, 7]
    assert cluster.world_size == 12 and read_cluster({"PORT": "9001"}, 1).port == 9001


def test_the_address_must_be_that_of_machine_0(job):
    some = {"NNODES": "2", "MASTER_PORT": str(free_port())}
    code, _, err = job.run({}, "2", **some, NODE_RANK="0", MASTER_ADDR="192.0.2.1")
    assert code == 2 and "no address of this machine" in err
    code, _, err = job.run({}, "2", **some, NODE_RANK="1", MASTER_ADDR="127.0.0.1")
    assert code == 2 and "must be that of machine 0" in err


def test_devices_are_counted(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    assert count_devices("GPU", None, tmp_path) == 2 and count_devices("GPU", 1, tmp_path) == 1
    assert count_devices("CPU", 9, tmp_path) == 9 and count_devices("Ascend", 8, tmp_path) == 8
    for target, given in (("GPU", 3), ("CPU", None), ("CPU", 0)):
        with pytest.raises(ValueError, match="DEVICES is|how many"):
            count_devices(target, given, tmp_path)


@pytest.mark.parametrize(
    ("text", "code", "advice"),
    [
        ("EJ0001: Failed to initialize the HCCP process.", 1, "npu-smi"),
        ("EI0006: [PID: 7] Getting socket times out.", 1, "HCCL_CONNECT_TIMEOUT"),
        ("NCCL Error 2: unhandled system error", 1, "/dev/shm"),
        ("NCCL WARN collective timed out after 600 s", 1, "NCCL_DEBUG"),
        ("RunRingAllReduce] Ring ReduceScatter wait receiving [1,1767] failed.", 1, "network between"),
        ("bind failed: Address already in use", 1, "MASTER_PORT"),
        ("RuntimeError: Out of memory, 3 GB wanted", 1, "train.batch_size"),
        ("OSError: [Errno 28] No space left on device", 1, "output_dir"),
        ("epoch 3", -signal.SIGKILL, "dmesg"),
        ("epoch 3", -signal.SIGBUS, "shm"),
        ("KeyError: 'x'", 1, None),
    ],
)
def test_known_errors_have_a_next_step(tmp_path: Path, text, code, advice):
    log = tmp_path / "worker_0.log"
    log.write_text("\n\n".join([f"line {i}" for i in range(40)] + [text]) + "\n")
    found = next_step(log, code)
    assert found is None if advice is None else advice in found
    assert last_lines(log, 2) == ["line 39", text] and next_step(tmp_path / "none.log", 1) is None


def test_the_line_with_the_error_is_found_above_a_stack(tmp_path: Path):
    log = tmp_path / "worker_0.log"
    log.write_text(
        "[ERROR] KERNEL(1) no\nTraceback\n  x = 1\nmindspore.core.SomeError: no such thing\n" + "stack\n" * 50
    )
    assert error_line(log) == "mindspore.core.SomeError: no such thing"
    log.write_text("loss 3\n[ERROR] KERNEL(1) no\nend\n")
    assert error_line(log) == "[ERROR] KERNEL(1) no"
    log.write_text("loss 3\n")
    assert error_line(log) is None
