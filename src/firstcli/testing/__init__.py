"""Conformance checks that the author of a plugin runs in a test of their own.

    from firstcli.testing import check_recalibrator

    def test_conforms():
        check_recalibrator(MyRecalibrator, {"strength": 0.5})

Each check returns nothing and raises AssertionError, with one sentence, where the plugin breaks
the contract of `firstcli.api`. They need no test framework.
"""

from firstcli.testing.families import check_family
from firstcli.testing.recalibrators import check_recalibrator
from firstcli.testing.tasks import check_task

__all__ = ["check_family", "check_recalibrator", "check_task"]
