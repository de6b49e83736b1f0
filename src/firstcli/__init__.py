"""firstcli: make a small language model that is accurate and knows when it may be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstcli.student.load import TrainedStudent as TrainedStudent
    from firstcli.student.load import load_student as load_student

__version__ = "0.1.0"
DOCUMENTATION = "https://firstcli.readthedocs.io"
__all__ = ["TrainedStudent", "__version__", "load_student"]


def __getattr__(name: str) -> Any:
    """Import `load_student` when it is used, so that `import firstcli` stays quick."""
    if name in ("load_student", "TrainedStudent"):
        from firstcli.student import load

        return getattr(load, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
