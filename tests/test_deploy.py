"""The cluster files use exactly the scripts, variables and exit codes of this repository."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from src.constants import DIVERGED, MISUSE, RESUME
from src.launching.checks import read_cluster
from src.launching.group import Limits
from tests.commands import ROOT

VOLCANO, SLURM = ROOT / "deploy" / "volcano.yaml", ROOT / "deploy" / "slurm.sh"
# Fields of batch.volcano.sh/v1alpha1 (config/crd/volcano/bases/batch.volcano.sh_jobs.yaml of volcano-sh/volcano).
JOB = {
    "maxRetry", "minAvailable", "minSuccess", "networkTopology", "plugins", "policies", "priorityClassName", "queue",
    "runningEstimate", "schedulerName", "tasks", "ttlSecondsAfterFinished", "volumes",
}  # fmt: skip
TASK = {
    "dependsOn", "maxRetry", "minAvailable", "name", "partitionPolicy", "policies", "replicas", "template",
    "topologyPolicy",
}  # fmt: skip
EVENTS = {
    "*", "PodPending", "PodRunning", "PodFailed", "PodEvicted", "Unknown", "TaskCompleted", "OutOfSync",
    "CommandIssued", "JobUpdated", "TaskFailed",
}  # fmt: skip
ACTIONS = {"AbortJob", "RestartJob", "RestartTask", "RestartPod", "TerminateJob", "CompleteJob", "ResumeJob"}
SCRIPT = "scripts/run_distribute_train.sh"


@pytest.fixture(scope="module")
def job() -> dict:
    return YAML(typ="safe").load(VOLCANO.read_text(encoding="utf-8"))


def test_the_volcano_job_has_the_fields_of_its_schema(job):
    assert (job["apiVersion"], job["kind"]) == ("batch.volcano.sh/v1alpha1", "Job")
    assert set(job["spec"]) <= JOB and job["spec"]["schedulerName"] == "volcano"
    assert all(isinstance(x, str) for options in job["spec"]["plugins"].values() for x in options)
    (task,) = job["spec"]["tasks"]
    assert set(task) <= TASK and task["replicas"] == job["spec"]["minAvailable"]
    for policy in task["policies"]:
        assert policy["action"] in ACTIONS and ("event" in policy) != ("exitCode" in policy)
        assert policy.get("event", "*") in EVENTS and policy.get("exitCode", 1) != 0
    (container,) = task["template"]["spec"]["containers"]
    volumes = {volume["name"] for volume in task["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert all(isinstance(entry["value"], str) for entry in container["env"])


def test_the_volcano_job_keeps_to_the_exit_codes(job):
    (task,) = job["spec"]["tasks"]
    actions = [(policy.get("exitCode", policy.get("event")), policy["action"]) for policy in task["policies"]]
    exits = [(MISUSE, "AbortJob"), (DIVERGED, "AbortJob"), (RESUME, "RestartJob")]
    assert actions[:3] == exits and ("PodFailed", "RestartJob") in actions[3:]  # which fits those, too
    pod = task["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] > Limits().stop + Limits().scheduler


def test_the_volcano_job_starts_the_script(job, tmp_path):
    (task,) = job["spec"]["tasks"]
    (container,) = task["template"]["spec"]["containers"]
    (tmp_path / "scripts").mkdir()
    (tmp_path / SCRIPT).write_text('echo "$NNODES $NODE_RANK $MASTER_ADDR $MASTER_PORT $*"')
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    given |= {"VC_TASK_INDEX": "1", "VC_MACHINE_HOSTS": "a.x,b.x", "PATH": os.environ["PATH"]}
    command = [*container["command"], *container["args"]]
    out = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, check=True).stdout
    config = given["CONFIG"]
    assert out == f"2 1 a.x 8118 {config} 8 device.target=Ascend output_dir=/shared/output\n"
    assert (ROOT / config).is_file() and job["spec"]["tasks"][0]["replicas"] == 2
    devices = container["resources"]["limits"]["huawei.com/Ascend910"]
    environ = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a.x", **given}
    assert read_cluster(environ, devices).world_size == 16


@pytest.mark.parametrize("file", [SLURM, *sorted((ROOT / "scripts").glob("*.sh"))], ids=lambda file: file.name)
def test_shell_files_parse(file):
    subprocess.run(["bash", "-n", file], check=True)


def test_slurm_accepts_the_batch_file():
    if shutil.which("sbatch") is None:
        pytest.skip("no sbatch on this machine")
    subprocess.run(["sbatch", "--test-only", SLURM, "config/ecenet/swin_base_ade20k.yaml"], check=True, cwd=ROOT)


# What srun and scontrol do, as far as the batch file needs it: srun hands signals and the exit code through.
SRUN = """#!{python}
import signal, subprocess, sys
process = subprocess.Popen([word for word in sys.argv[1:] if not word.startswith("--")])
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: process.send_signal(number))
sys.exit(process.wait())
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo first; echo second; else echo "$@" >> requeued; fi
"""
TRAIN = """echo "$NNODES $NODE_RANK $MASTER_ADDR $*" > started
trap 'exit 85' USR1 TERM
[ "$1" = end ] && exit {code}
touch ready
while :; do sleep 0.05; done
"""


def run_batch(root: Path, word: str, code: int = 0) -> subprocess.Popen:
    """Starts the batch file among stand-ins for Slurm's programs and for the training script."""
    (root / "bin").mkdir()
    (root / "scripts").mkdir()
    for name, text in (("bin/srun", SRUN.format(python=sys.executable)), ("bin/scontrol", SCONTROL)):
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    (root / SCRIPT).write_text(TRAIN.format(code=code))
    given = {
        "PATH": f"{root / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "x[1-2]",
        "SLURM_NODEID": "0", "SLURM_JOB_ID": "77", "DEVICES": "4",
    }  # fmt: skip
    return subprocess.Popen(["bash", SLURM, word, "seed=1"], cwd=root, env=given)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slurm_puts_a_run_whose_time_is_up_back_into_the_queue(tmp_path, number):
    process = run_batch(tmp_path, "config.yaml")
    until = time.monotonic() + 20
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=20) == 85
    if number == signal.SIGUSR1:
        assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    else:  # scancel: nobody wants it back
        assert not (tmp_path / "requeued").exists()
    assert (tmp_path / "started").read_text() == "2 0 first config.yaml 4 seed=1\n"


@pytest.mark.parametrize("code", [0, 1, 2])
def test_slurm_hands_other_codes_through(tmp_path, code):
    assert run_batch(tmp_path, "end", code).wait(timeout=20) == code
    assert not (tmp_path / "requeued").exists()


def test_slurm_gives_the_workers_time_to_save():
    seconds = int(re.search(r"--signal=B:USR1@(\d+)", SLURM.read_text())[1])
    assert seconds > Limits().stop + Limits().scheduler
