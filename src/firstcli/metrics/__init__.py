"""Metrics of evaluation records: calibration errors, scores, intervals, paired differences."""

from firstcli.metrics.calibration import ReliabilityBin as ReliabilityBin
from firstcli.metrics.calibration import ece as ece
from firstcli.metrics.calibration import ece_classwise as ece_classwise
from firstcli.metrics.calibration import ece_mass as ece_mass
from firstcli.metrics.calibration import ece_parts as ece_parts
from firstcli.metrics.calibration import ece_smooth as ece_smooth
from firstcli.metrics.calibration import mce as mce
from firstcli.metrics.calibration import reliability_bins as reliability_bins
from firstcli.metrics.scores import FLOOR as FLOOR
from firstcli.metrics.scores import accuracy as accuracy
from firstcli.metrics.scores import accuracy_at as accuracy_at
from firstcli.metrics.scores import aurc as aurc
from firstcli.metrics.scores import auroc as auroc
from firstcli.metrics.scores import brier as brier
from firstcli.metrics.scores import brier_parts as brier_parts
from firstcli.metrics.scores import brier_top as brier_top
from firstcli.metrics.scores import confidence_mae as confidence_mae
from firstcli.metrics.scores import mean_confidence as mean_confidence
from firstcli.metrics.scores import nll as nll
from firstcli.metrics.scores import risk_coverage as risk_coverage
from firstcli.metrics.scores import trust as trust
from firstcli.metrics.summary import METRICS as METRICS
from firstcli.metrics.summary import EvalMetrics as EvalMetrics
from firstcli.metrics.summary import Metric as Metric
from firstcli.metrics.summary import p_value as p_value
from firstcli.metrics.summary import summarize as summarize
