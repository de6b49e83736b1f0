"""firstcli: make a small language model that is accurate and knows when it may be wrong."""

__version__ = "0.1.0"

DOCUMENTATION = "https://firstcli.readthedocs.io"
