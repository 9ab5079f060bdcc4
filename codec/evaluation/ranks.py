"""The processes of a launcher, for a program that divides its work among them."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch

from coco224.errors import counted
from codec.errors import InputError
from codec.network.exact import exact_fp32

T = TypeVar("T")

_TIMEOUT = timedelta(hours=1)  # until every process has finished its share

_OF_LAUNCHERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def drop_empty_variables() -> None:
    """Unsets a launcher's empty environment variables; some schedulers export them to every shell."""
    for name in _OF_LAUNCHERS:
        if not os.environ.get(name, "1").strip():
            del os.environ[name]


def launched_processes() -> int | None:
    """The number of processes that a launcher started, from WORLD_SIZE; None without a launcher.

    Raises:
        InputError: WORLD_SIZE is not a number, or RANK is not below it.
    """
    text = os.environ.get("WORLD_SIZE")
    if text is None:
        return None
    if not text.isdigit():
        raise InputError(f"WORLD_SIZE={text} in the environment is no number of processes: unset it")
    rank = os.environ.get("RANK", "0")
    if not rank.isdigit() or int(rank) >= int(text):
        raise InputError(f"RANK={rank} in the environment, with WORLD_SIZE={text}: a rank is 0 to {int(text) - 1}")
    return int(text)


@dataclass(frozen=True)
class Ranks:
    """This process and the others that `accelerate launch` started; without a launcher it is the only one."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def join(cls) -> "Ranks":
        """Connects to the other processes, and makes FP32 on a GPU exact.

        Raises:
            InputError: the launcher's processes are not connected to each other.
        """
        drop_empty_variables()
        exact_fp32()
        launched = launched_processes() or 1
        if launched == 1:
            return cls(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=_TIMEOUT)
        if state.num_processes != launched:
            raise InputError(
                f"the launcher started {counted(launched, 'process')} but Accelerate sees {state.num_processes}, so "
                "each would do all the work; on CPUs: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu; for one "
                "process: unset WORLD_SIZE"
            )
        return cls(state.process_index, state.num_processes, state.device)

    def gather(self, share: Iterable[T]) -> list[T]:
        """The items of all ranks' shares, on every rank. Each rank works at its own speed through its share.

        Raises:
            InputError: on all ranks, if one rank's share raised it.
        """
        wrong = None
        mine: list[T] = []
        try:
            mine.extend(share)
        except InputError as error:
            wrong = str(error)
        if self.world_size > 1:
            from accelerate.utils import gather_object

            shares = gather_object([(mine, wrong)])
            mine = [item for items, _ in shares for item in items]
            wrong = next((words for _, words in shares if words), None)
        if wrong:
            raise InputError(wrong)
        return mine

    def leave(self) -> None:
        """Disconnects from the other processes, when all have come here: one that ends earlier can abort the others."""
        if self.world_size > 1:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()


def program(*names: str) -> dict[str, str]:
    """The program for `check_agreement`: a checksum of these folders and files of it, and the version of PyTorch."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in (root / name for name in names):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return {"the program's code": digest.hexdigest(), "PyTorch": torch.__version__}


def check_agreement(facts: Mapping[str, Any], processes: int) -> None:
    """Refuses processes that differ: they would do different work, or wait for each other forever.

    Args:
        facts: values that must be equal, by their name in errors.
        processes: how many there are.

    Raises:
        InputError: on every rank, naming what differs.
    """
    if processes == 1:
        return
    from accelerate.utils import gather_object

    everyone = gather_object([dict(facts)])
    first = everyone[0]
    for rank, other in enumerate(everyone):
        differing = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        if differing:
            values = [f"{name} {first.get(name)} and {other.get(name)}" for name in differing if name.startswith("--")]
            named = values + [name for name in differing if not name.startswith("--")]
            raise InputError(
                f"processes 0 and {rank} differ in {'; '.join(named)}: give every process the same options, data and "
                "program"
            )
