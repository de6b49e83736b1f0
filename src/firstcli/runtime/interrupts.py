"""Ctrl-C, which Python drops if it arrives in a callback of the garbage collector."""

from __future__ import annotations

import _thread
import sys
import threading

AGAIN_AFTER = 0.1
"""Seconds until an interrupt that was dropped is repeated."""


def repeat_dropped() -> None:
    """Repeat interrupts that were dropped, until one reaches the command.

    Python prints an exception that is raised in `__del__` or in the callback of a weak reference,
    and goes on. After a long call of a library, that is often where an interrupt arrives first.
    """
    report = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            report(dropped)
            return
        timer = threading.Timer(AGAIN_AFTER, _thread.interrupt_main)
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
