"""Conformance checks for plugins, to be called in the plugin's own tests.

    from firstcli.testing import check_recalibrator

    def test_conforms():
        check_recalibrator(MyRecalibrator, {"strength": 0.5})

Each check returns nothing. It raises AssertionError with one sentence where the plugin breaks the
contract of `firstcli.api`. The checks do not depend on a test framework.
"""

from firstcli.api import FitInputs
from firstcli.testing.annotators import check_annotator, simulated_items
from firstcli.testing.augmenters import check_augmenter, check_augmenter_on, simulated_prompts
from firstcli.testing.families import check_family
from firstcli.testing.objectives import check_objective, simulated_positions
from firstcli.testing.recalibrators import check_recalibrator, overconfident_teacher
from firstcli.testing.selectors import check_selector, simulated_pool
from firstcli.testing.tasks import check_task

__all__ = [
    "FitInputs",
    "check_annotator",
    "check_augmenter",
    "check_augmenter_on",
    "check_family",
    "check_objective",
    "check_recalibrator",
    "check_selector",
    "check_task",
    "overconfident_teacher",
    "simulated_items",
    "simulated_pool",
    "simulated_positions",
    "simulated_prompts",
]
