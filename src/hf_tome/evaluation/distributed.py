"""Several processes that share one evaluation, as `accelerate` and `torchrun` start them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def _stdout_is_stderr() -> Iterator[None]:
    """Send what is written to standard output to standard error: Gloo in torch 2.8 prints its connections there."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


@dataclass(frozen=True)
class DistributedContext:
    """The number of processes and the rank of this one."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes results."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for all the others."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def gather(self, items: list[T]) -> list[T]:
        """Return the items of all processes, in each of them."""
        if self.size == 1:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)


def distributed_context(device: str = "cpu") -> DistributedContext:
    """Join the processes that `torchrun` or `accelerate launch` started; without them this is the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return DistributedContext()
    from accelerate import PartialState

    with _stdout_is_stderr():
        state = PartialState(cpu=device == "cpu")
    return DistributedContext(state.process_index, state.num_processes)
