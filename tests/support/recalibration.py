"""Fitted built-in recalibrators, and rows as recalibrators get them."""

from __future__ import annotations

from typing import Any

from firstcli.api import Recalibrator, TopKRows
from firstcli.plugins import Plugin
from firstcli.plugins.recalibrators import CheckedRecalibrator, plain_rows
from firstcli.recalibration.builtin import SingleTemperature
from firstcli.testing import FitInputs


def fitted(cls: type[SingleTemperature], inputs: FitInputs, **options: object) -> SingleTemperature:
    recalibrator = cls(cls.Options.model_validate(options))
    recalibrator.fit(*inputs)
    return recalibrator


def checked(recalibrator: Recalibrator[Any]) -> CheckedRecalibrator:
    """Return a recalibrator as if a third party's package provided it."""
    module, name = type(recalibrator).__module__, type(recalibrator).__name__
    return CheckedRecalibrator(
        Plugin("recalibrators", "mine", f"{module}:{name}", "first-mine", "1.2"), recalibrator
    )


def rows_of(inputs: FitInputs) -> TopKRows:
    return plain_rows(inputs.topk, inputs.mass, inputs.mass_mode)
