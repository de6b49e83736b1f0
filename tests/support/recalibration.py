"""Fitted built-in recalibrators."""

from __future__ import annotations

from firstcli.recalibration.builtin import SingleTemperature
from firstcli.testing import FitInputs


def fitted(cls: type[SingleTemperature], inputs: FitInputs, **options: object) -> SingleTemperature:
    recalibrator = cls(cls.Options.model_validate(options))
    recalibrator.fit(*inputs)
    return recalibrator
