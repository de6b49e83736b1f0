"""The processes of one launch (`accelerate launch`, `torchrun`, SLURM): who is first, who agrees.

Launchers tell each process its number in RANK and how many there are in WORLD_SIZE. The first one
prints, decides what is to be done and writes what all share; the others follow it. With one
process everything here is an ordinary call, and torch is not imported.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

from firstcli.errors import UserError

T = TypeVar("T")

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others; a dead one is noticed at once."""

LOST = (
    "another process of this launch has failed or was stopped (its own message says why); finished "
    "work is kept, start the same command again to go on"
)


def rank() -> int:
    """Return this process's number, from 0 on."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return rank() == 0


def by_first(make: Callable[[], T]) -> T:
    """Let the first process make something and give it to all; its mistake ends all of them.

    Raises:
        UserError: what `make` raised; without a message in the others, so that it is told once.
    """
    if count() == 1:
        return make()
    told: tuple[Any, bool] = (None, False)
    if is_first():
        try:
            told = (make(), True)
        except BaseException:
            with suppress(RuntimeError):  # the others may be gone; this one's reason matters
                _broadcast(told)
            raise
    value, made = _broadcast(told)
    if not made:
        raise UserError()
    result: T = value
    return result


def wait() -> None:
    """Return when all processes have come here."""
    if count() > 1:
        gathered(None)


def gathered(value: T) -> list[T]:
    """Return every process's value, in the order of their numbers."""
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


_GROUPS: list[Any] = []


def _group() -> Any:
    """Return a group over gloo for what processes tell each other, whatever moves their tensors."""
    if not _GROUPS:
        import torch

        if not torch.distributed.is_initialized():
            _join()
        _GROUPS.append(torch.distributed.new_group(backend="gloo", timeout=PATIENCE))
    return _GROUPS[0]


def _join() -> None:
    import torch

    has_gpu = torch.cuda.is_available()
    try:
        if has_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {rank()} of {count()} cannot join the others: {_first_line(error)}; start "
            "them with `accelerate launch` or torchrun, no more a machine than it has GPUs"
        ) from error


def leave() -> None:
    """End the connections in good order, when all have come here: left open, they abort the end."""
    import torch

    if torch.distributed.is_initialized():
        wait()
        _GROUPS.clear()
        torch.distributed.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """Turn the loss of another process into a sentence; leave the group in order at the end.

    Raises:
        UserError: another process has died.
    """
    if count() == 1:
        yield
        return
    signal.signal(signal.SIGTERM, _stopped)  # how launchers end those that are left
    try:
        yield
    except UserError as error:
        if not is_first():  # its own mistake, of which the first process knows nothing
            for message in error.messages:
                print(f"error: process {rank()}: {message}", file=sys.stderr)
        raise
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise UserError(f"{LOST} ({_first_line(error)})") from error
    leave()


def _is_lost(error: RuntimeError) -> bool:
    signs = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Broken pipe",
        "remote process exit",
    )
    return any(sign in str(error) for sign in signs)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _stopped(*_: object) -> None:
    if is_first():
        print(f"error: stopped by the launcher, or {LOST}", file=sys.stderr)
    os._exit(128 + signal.SIGTERM)
