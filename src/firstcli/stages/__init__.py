"""The work itself, a module a stage: `check` before anything runs, `work`, and `summary`.

The pipeline imports these modules only when they are needed; torch is imported here and below.
"""

from transformers.utils import logging

# firstcli shows progress and says what went wrong; the library's own bars would write over it.
logging.disable_progress_bar()
logging.set_verbosity_error()
