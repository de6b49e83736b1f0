"""The processes of one launch (`accelerate launch`, `torchrun`, SLURM) and their communication.

Launchers set RANK, the number of a process, and WORLD_SIZE, the number of processes. The first
process prints, decides what to do and writes shared files; the other processes follow it. With a
single process, everything here is an ordinary call, and torch is not imported.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from firstcli.errors import UserError

T = TypeVar("T")

COMMUNICATION_TIMEOUT = timedelta(hours=12)  # a dead process is noticed at once

LOST = (
    "another process of this launch failed or was stopped (see its own message); finished work is "
    "kept, run the same command again to continue"
)


def rank() -> int:
    """Return the number of this process, starting at 0."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return rank() == 0


def by_first(make: Callable[[], T]) -> T:
    """Call `make` in the first process and return its result in all; an exception ends all.

    Raises:
        UserError: raised by `make`; in the other processes without a message, so that it is
            printed once.
    """
    if count() == 1:
        return make()
    outcome: tuple[Any, bool] = (None, False)  # the result, and whether there is one
    if is_first():
        try:
            outcome = (make(), True)
        except BaseException:
            with suppress(RuntimeError):  # the other processes may be gone; keep this exception
                _broadcast(outcome)
            raise
    result, succeeded = _broadcast(outcome)
    if not succeeded:
        raise UserError()
    value: T = result
    return value


def wait() -> None:
    """Wait until all processes have called this function."""
    gathered(None)


def gathered(value: T) -> list[T]:
    """Return the values of all processes, in the order of their numbers."""
    if count() == 1:
        return [value]
    import torch

    values: list[Any] = [None] * count()
    torch.distributed.all_gather_object(values, value, group=_group())
    return values


def _broadcast(value: Any) -> Any:
    import torch

    holder = [value]
    torch.distributed.broadcast_object_list(holder, src=0, group=_group())
    return holder[0]


@cache
def _group() -> Any:
    """Return a gloo group for Python objects, whichever backend exchanges the tensors."""
    import torch

    try:
        if not torch.distributed.is_initialized():
            has_gpu = torch.cuda.is_available()
            if has_gpu:
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
            torch.distributed.init_process_group(backend, timeout=COMMUNICATION_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {rank()} of {count()} cannot join the others: {_first_line(error)}; start "
            "them with `accelerate launch` or torchrun, with at most one per GPU on each machine"
        ) from error
    return torch.distributed.new_group(backend="gloo", timeout=COMMUNICATION_TIMEOUT)


def leave() -> None:
    """Close the connections after all processes have finished; open ones make the exit crash."""
    import torch

    if torch.distributed.is_initialized():
        wait()
        _group.cache_clear()
        torch.distributed.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """Report the loss of another process as one sentence, and leave the group at the end.

    Raises:
        UserError: another process has died.
    """
    if count() == 1:
        yield
        return
    signal.signal(signal.SIGTERM, _on_sigterm)  # launchers send it to the remaining processes
    try:
        yield
    except UserError as error:
        if not is_first():  # the first process does not know this error
            for message in error.messages:
                print(f"error: process {rank()}: {message}", file=sys.stderr)
        raise
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise UserError(f"{LOST} ({_first_line(error)})") from error
    leave()


def _is_lost(error: RuntimeError) -> bool:
    signs = ("closed by peer", "reset by peer", "Broken pipe", "remote process exit")
    return any(sign in str(error) for sign in signs)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _on_sigterm(*_: object) -> None:
    if is_first():
        print(f"error: stopped by the launcher, or {LOST}", file=sys.stderr)
    os._exit(128 + signal.SIGTERM)
