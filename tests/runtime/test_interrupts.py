"""An interrupt that arrives where Python drops exceptions."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import time, weakref
from firstcli.runtime import interrupts

class Thing:
    pass

def callback(_):
    raise {error}

interrupts.repeat_dropped()
thing = Thing()
reference = weakref.ref(thing, callback)
try:
    del thing
    time.sleep({seconds})
    print("went on")
except KeyboardInterrupt:
    print("stopped")
"""


def outcome(error: str, seconds: float) -> tuple[str, str]:
    """Return what a program prints in whose callback an error is raised."""
    program = PROGRAM.format(error=error, seconds=seconds)
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return found.stdout, found.stderr


def test_an_interrupt_in_a_callback_reaches_the_command() -> None:
    assert outcome("KeyboardInterrupt", seconds=30) == ("stopped\n", "")


def test_other_exceptions_are_still_printed() -> None:
    out, printed = outcome("ValueError('odd')", seconds=0)
    assert out == "went on\n" and "ValueError: odd" in printed
