"""hydra/launcher=submitit_slurm: every run of a sweep is a Slurm job of its own (docs/slurm.md).

The launcher of hydra-submitit-launcher, with values for one GPU a run, and with signals kept to the process they mean.
"""

import os
import signal
import sys
from dataclasses import dataclass, field
from typing import Any, NoReturn

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as Submitit
except ModuleNotFoundError:

    class Submitit(Launcher):  # type: ignore[no-redef]
        def __init__(self, **_: Any) -> None:
            raise ValueError("hydra/launcher=submitit_slurm needs a plugin: pip install 'whispertag[slurm]'")

        def setup(self, **_: Any) -> None: ...

        def launch(self, *_: Any) -> Any: ...


TELL_SRUN = '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK'


@dataclass
class SlurmConf:
    """What a job is; None leaves it to the cluster.

    tasks_per_node         with trainer=ddp one a GPU, as many as trainer.devices
    gres                   where GPUs are asked for that way: gpu:1, with gpus_per_node=null
    cpus_per_task          for data.workers and the process that trains
    array_parallelism      jobs of a sweep that run at a time
    additional_parameters  whatever else sbatch knows, as {mail-type: END}
    signal_delay_s         how long before it is out of time a job stops and is queued again
    max_num_timeout        how often it may run out of time
    setup                  shell commands before the job; since 22.05 srun does not ask sbatch how many CPUs a task has
    submitit_folder        what the jobs print, %j: their number
    """

    _target_: str = f"{__name__}.SlurmLauncher"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    comment: str | None = None
    name: str = "${hydra.job.name}"
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int | None = 1
    gres: str | None = None
    cpus_per_task: int | None = 8
    mem_gb: int | None = 32
    timeout_min: int = 720
    array_parallelism: int = 256
    additional_parameters: dict[str, Any] = field(default_factory=lambda: {"requeue": True})
    signal_delay_s: int = 120
    max_num_timeout: int = 20
    setup: list[str] | None = field(default_factory=lambda: [TELL_SRUN])
    stderr_to_stdout: bool = True
    submitit_folder: str = "${hydra.sweep.dir}/.submitit/%j"


# In place of the plugin's own values, which have no GPU and an hour.
ConfigStore.instance().store(group="hydra/launcher", name="submitit_slurm", node=SlurmConf, provider="whispertag")


class SlurmLauncher(Submitit):
    def __call__(self, *args: Any, **kwargs: Any) -> JobReturn:
        """In the job: one run.

        Slurm signals all processes of a job. Submitit's answer (queue the job again) must come from one of them, not
        from every loader worker, which inherits it. And a worker's death must not be what the run hears of first.
        """
        os.register_at_fork(after_in_child=leave_signals_to_parent)
        signal.signal(signal.SIGTERM, stop)
        return super().__call__(*args, **kwargs)


def stop(number: int, _: Any) -> NoReturn:
    """Cancelled, pre-empted or queued again: as Ctrl-C, so that the run says "interrupted"."""
    sys.exit(128 + number)


def leave_signals_to_parent() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
