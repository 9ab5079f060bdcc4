"""A real SLURM on loopback: one controller and two pretended nodes of 8 GPUs, without munge, in a folder of its own."""

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from programs import ROOT

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
SCRIPTS = ROOT / "accelerate_configs" / "slurm"
NODES = ("n1", "n2")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

# cred_expire: the least that is accepted; a requeue takes 6 s, not 120. NoInAddrAny: listen on loopback alone.
CONF = """
ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmdParameters=config_overrides
KillWait=20
JobRequeue=1
MinJobAge=300
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=128 RealMemory=900000 Gres=gpu:h200:8
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=128 RealMemory=900000 Gres=gpu:h200:8
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


class CommandError(Exception):
    """A command of SLURM's failed."""


class Cluster:
    """Runs SLURM's commands against this cluster.

    Attributes:
        environment: of every command, and through sbatch of every job.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment | {"SLURM_CONF": str(folder / "slurm.conf")}

    @contextlib.contextmanager
    def running(self) -> Iterator["Cluster"]:
        """The daemons, until the end of the block."""
        for name in ("state", "log", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        names = {"host": socket.gethostname().split(".")[0], "user": pwd.getpwuid(os.getuid()).pw_name}
        (self.folder / "slurm.conf").write_text(CONF.format(folder=self.folder, ports=free_ports(3), **names))
        (self.folder / "gres.conf").write_text("NodeName=n[1-2] Name=gpu Type=h200 File=/dev/tty[0-7]\n")
        try:
            self.command("slurmctld")
            for node in NODES:
                self.command("slurmd", "-N", node)
            wait_until(lambda: self.command("sinfo", "-h", "-o", "%t %D").strip() == "idle 2", "two idle nodes")
            yield self
        finally:
            self._stop()

    def _stop(self) -> None:
        """Ends what is left of the jobs, then the daemons by their pid files."""
        with contextlib.suppress(CommandError):
            for job in self.command("squeue", "-h", "-o", "%A").split():
                self.command("scancel", "--full", "--signal=KILL", job)
        for file in self.folder.glob("*.pid"):
            with contextlib.suppress(ValueError, ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not list(self.folder.glob("*.pid")), "the daemons' end", seconds=10)

    def command(self, *words: object) -> str:
        """What a command says on stdout and stderr; raises CommandError if it fails."""
        done = subprocess.run(
            [str(word) for word in words],
            cwd=ROOT, env=self.environment, text=True, timeout=60, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode:
            raise CommandError(f"{' '.join(map(str, words))}: status {done.returncode}: {done.stdout}")
        return done.stdout

    def job(self, job: str) -> dict[str, str]:
        """What SLURM says of a job: JobState, Restarts, ExitCode, NodeList and the rest."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.command("scontrol", "show", "job", "-o", job)))

    def ended(self, job: str) -> dict[str, str]:
        """Waits for the end of a job, through all its restarts, and gives what SLURM says of it then."""
        wait_until(lambda: self.job(job)["JobState"] in ENDED, f"the end of job {job}")
        return self.job(job)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 240) -> None:
    """Raises TimeoutError if it does not come to hold."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.1)
