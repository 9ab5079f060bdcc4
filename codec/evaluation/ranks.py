"""The processes of a launcher, for a program that shares its work out among them."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch

from codec.errors import InputError

T = TypeVar("T")


_OF_LAUNCHERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def drop_empty_variables() -> None:
    """Unsets a launcher's variables that are empty, as some schedulers export them to every shell."""
    for name in _OF_LAUNCHERS:
        if not os.environ.get(name, "1").strip():
            del os.environ[name]


def launched_processes() -> int | None:
    """How many processes a launcher says that it started; None without one.

    Raises:
        InputError: WORLD_SIZE is no number.
    """
    text = os.environ.get("WORLD_SIZE")
    if text is None:
        return None
    if not text.isdigit():
        raise InputError(f"WORLD_SIZE={text} in the environment is no number of processes: unset it")
    return int(text)


@dataclass(frozen=True)
class Ranks:
    """This process among those that `accelerate launch` started, or alone."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def join(cls) -> "Ranks":
        """Meets the others.

        Raises:
            InputError: the launcher's processes do not know of each other.
        """
        drop_empty_variables()
        launched = launched_processes() or 1
        if launched == 1:
            return cls(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        if state.num_processes != launched:
            raise InputError(
                f"the launcher started {launched} processes but Accelerate sees {state.num_processes}, so each would "
                "do all the work; on CPUs: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu; for one process: "
                "unset WORLD_SIZE"
            )
        return cls(state.process_index, state.num_processes, state.device)

    def gather(self, share: Iterable[T]) -> list[T]:
        """What all ranks' shares give, on every rank. Each works at its own pace until its share ends.

        Raises:
            InputError: one rank's share raised it; all ranks do.
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
