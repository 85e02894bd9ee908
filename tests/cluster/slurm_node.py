"""A real SLURM of one node on loopback, with its state in a temporary folder: munged, slurmctld and slurmd."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
CONFIGURATION = """
ClusterName=medvlp
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=ALL MaxTime=5 State=UP
"""


def missing() -> str:
    """Return what this machine lacks for a SLURM of its own, or an empty string."""
    absent = [command for command in COMMANDS if shutil.which(command, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} cannot be found (Debian packages slurm-wlm and munge)"
    return "" if os.geteuid() == 0 else "the daemons run as root"


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def slurm(folder: Path, cpus: int = 2) -> Iterator[Path]:
    """Run SLURM and yield its configuration file, which belongs into SLURM_CONF; stop it at the end."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    controller, daemon = _free_ports(2)
    conf = folder / "slurm.conf"
    conf.write_text(
        CONFIGURATION.format(host=host, controller=controller, daemon=daemon, folder=folder, cpus=cpus).lstrip()
    )
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(conf)}
    munge = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "log-file": "munged.log"}
    munge["seed-file"] = "munged.seed"
    options = [f"--{name}={folder / file}" for name, file in munge.items()]
    daemons: list[subprocess.Popen[bytes]] = []
    commands = [["munged", "--foreground", "--force", *options], ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]]
    try:
        with (folder / "daemons.log").open("wb") as log:
            for command in commands:
                daemons.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                )
                if command[0] == "munged":
                    _until(lambda: (folder / "munge.socket").exists(), folder, daemons)
            _until(lambda: "idle" in _output(["sinfo", "-h", "-o", "%T"], environment), folder, daemons)
        yield conf
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, timeout=60)
        for process in reversed(daemons):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout


def _until(
    ready: Callable[[], bool], folder: Path, daemons: list[subprocess.Popen[bytes]], seconds: float = 60
) -> None:
    end = time.monotonic() + seconds
    while not ready():
        dead = [process for process in daemons if process.poll() is not None]
        if dead or time.monotonic() > end:
            logs = "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in folder.glob("*.log"))
            raise RuntimeError(f"SLURM does not start\n{logs}")
        time.sleep(0.1)
