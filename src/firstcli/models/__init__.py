"""Causal language models: loading, batching, and reading their predictions at the output layer."""

from transformers.utils import logging

# firstcli shows its own progress and reports errors itself; the library's output would mix with it.
logging.disable_progress_bar()
logging.set_verbosity_error()
