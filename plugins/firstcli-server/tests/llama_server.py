"""Serve a GGUF file with llama.cpp's own server: `python llama_server.py FILE`; prints its address.

It runs in an environment that has `xllamacpp`, and stops when its standard input closes.
"""

from __future__ import annotations

import sys

import xllamacpp


def main(path: str) -> None:
    """Serve until the standard input closes."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.port = 4096, 4, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
