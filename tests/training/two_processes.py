"""Run a function in two processes of one gloo group, without paying for two more imports of torch.

A fork server imports torch and transformers once; both processes are forked from it.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

PRELOADED = [  # the fork server does not know the folder of the tests
    "firstcli.training.trainer",
    "hypothesis",
    "peft",
    "pytest",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
]


def run_in_two_processes(function: Callable[..., None], *arguments: Any) -> None:
    """Run `function(*arguments)` in both processes; an exception in one of them is raised here."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start: Any = start_processes
    start(_start, (port, function, arguments), nprocs=2, start_method="forkserver")


def _start(rank: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    gc.freeze()  # otherwise every collection visits all imported modules
    torch.set_num_threads(1)
    function(*arguments)
