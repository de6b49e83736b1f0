"""The spool returns what was appended, leaves no file behind, and keeps only an index in memory."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from firstcli.data.spool import Spool


def test_rows_in_any_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    rows = [bytes([n % 256]) * (n % 7) for n in range(1000)]
    for row in rows:
        spool.append(row)
    assert len(spool) == 1000
    for index in np.random.default_rng(0).permutation(1000).tolist():
        assert spool[index] == rows[index]


def test_the_file_has_no_name_and_grows_after_a_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(b"abc")
    assert spool[0] == b"abc"
    assert not list(tmp_path.iterdir())
    spool.append(b"d")
    assert (spool[1], spool[0]) == (b"d", b"abc")


def test_a_missing_folder_is_replaced_by_the_temporary_one(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "missing")
    assert len(spool) == 0
    spool.append(b"")
    assert spool[0] == b""


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages in /proc")
def test_reading_200_mb_keeps_little_of_it_in_memory(tmp_path: Path) -> None:
    """In order and at random; in a memory map, each small read would keep 2 MB."""
    spool = Spool(tmp_path)
    row = bytes(1 << 12)
    for _ in range(50_000):
        spool.append(row)
    random = np.random.default_rng(0).integers(0, len(spool), 5_000).tolist()
    before, peak = resident(), 0
    for turn, index in enumerate([*range(0, len(spool), 16), *random]):
        assert not spool[index][250]
        if turn % 50 == 0:
            peak = max(peak, resident())
    assert peak - before < 10_000


def resident() -> int:
    """Return the resident memory of this process in kB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
