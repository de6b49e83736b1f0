"""Time the pipeline against the bare loop, as alternating whole processes.

python benchmarks/overhead.py recipes/quickstart.yaml [--set KEY=VALUE ...] [--repeat 3]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Print median and range of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--repeat", type=int, default=3)
    chosen = parser.parse_args()
    loop = [sys.executable, str(Path(__file__).parent / "bare_loop.py"), chosen.recipe]
    loop += chosen.overrides
    bare, whole = [], []
    for _ in range(chosen.repeat):
        bare.append(seconds(loop))
        folder = tempfile.mkdtemp()
        command = [sys.executable, "-m", "firstcli", "eval", chosen.recipe, "--run-dir", folder]
        for override in chosen.overrides:
            command += ["--set", override]
        whole.append(seconds(command))
        shutil.rmtree(folder)
    for name, times in (("bare loop", bare), ("first eval", whole)):
        print(
            f"{name}: median {statistics.median(times):.1f} s, {min(times):.1f} to {max(times):.1f}"
        )
    print(f"ratio: {statistics.median(whole) / statistics.median(bare):.2f}")


if __name__ == "__main__":
    main()
