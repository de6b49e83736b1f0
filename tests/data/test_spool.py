"""The spool: what goes in comes out, no name stays, and the process does not grow with the data."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from firstcli.data.spool import Spool


def test_any_part_in_any_order(tmp_path: Path) -> None:
    held = Spool(tmp_path)
    numbers = np.arange(1000, dtype=np.int32)
    held.write(numbers[:300])
    held.write(numbers[300:].tobytes())
    assert held.size == 4000
    for start in np.random.default_rng(0).integers(0, 990, 50).tolist():
        assert (
            held.array(np.int32, start, start + 10).tolist() == numbers[start : start + 10].tolist()
        )
    assert bytes(held.read(4, 8)) == numbers[1:2].tobytes()
    assert held.array(np.int32, 5, 5).tolist() == []


def test_it_has_no_name_and_takes_no_more_once_read(tmp_path: Path) -> None:
    held = Spool(tmp_path)
    held.write(b"abc")
    assert bytes(held.read(0, 3)) == b"abc"
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="takes no more"):
        held.write(b"d")


def test_an_empty_one_reads_as_nothing(tmp_path: Path) -> None:
    assert bytes(Spool(tmp_path / "missing").read(0, 0)) == b""


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
def test_reading_200_mb_keeps_little_of_it_in_memory(tmp_path: Path) -> None:
    """In order and at random: of a memory map, each small read would keep 2 MB."""
    held = Spool(tmp_path)
    block = np.zeros(1 << 18)
    for _ in range(100):
        held.write(block)
    places = np.random.default_rng(0).integers(0, held.size - 500, 5_000).tolist()
    before, most = resident(), 0
    for turn, start in enumerate([*range(0, held.size, 1 << 16), *places]):
        assert not held.read(start, start + 500)[250]
        if turn % 50 == 0:
            most = max(most, resident())
    assert most - before < 10_000


def resident() -> int:
    """Return the kB that this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
