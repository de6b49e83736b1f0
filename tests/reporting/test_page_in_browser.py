"""The report's page in a real browser, on a narrow and a wide screen, in light and dark mode."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from support.invented_report import EVIL

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

WIDTHS = (390, 1280)

# The page allows no scripts, so a wrapper measures it in frames of the screens' widths.
WRAPPER = """<!DOCTYPE html>
<html><body>
%s
<pre id="found"></pre>
<script>
function measured(frame) {
  const page = frame.contentDocument, root = page.documentElement, look = frame.contentWindow;
  page.querySelectorAll("details").forEach(details => { details.open = true; });
  const style = look.getComputedStyle(page.body);
  return {
    width: frame.clientWidth,
    needed: Math.max(root.scrollWidth, page.body.scrollWidth),
    images: [...page.images].map(one => [one.complete, one.naturalWidth, one.naturalHeight,
      one.getBoundingClientRect().width, one.getBoundingClientRect().right]),
    scripts: page.scripts.length,
    text: page.body.innerText,
    ink: style.color,
    paper: style.backgroundColor,
    heights: [...page.querySelectorAll("section")].map(one => one.offsetHeight),
  };
}
window.onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(measured);
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script></body></html>
"""


@pytest.fixture(scope="module")
def page(invented_report: Path) -> Path:
    return invented_report / "index.html"


def rendered(page: Path, folder: Path, *options: str) -> list[dict[str, Any]]:
    """Return measurements of the page as a browser renders it, one per width."""
    frames = "".join(
        f'<iframe src="{page.as_uri()}" style="width:{width}px;height:900px;border:0"></iframe>'
        for width in WIDTHS
    )
    wrapper = folder / "wrapper.html"
    wrapper.write_text(WRAPPER % frames, "utf-8")
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}"),
        # by default, a page of a file may not read the page of another file
        *("--allow-file-access-from-files", "--virtual-time-budget=20000", *options),
        *("--dump-dom", wrapper.as_uri()),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    found = re.search(r'<pre id="found">(.*?)</pre>', ended.stdout, re.DOTALL)
    assert found and found[1], ended.stderr
    screens: list[dict[str, Any]] = json.loads(unescape(found[1]))
    return screens


@pytest.fixture(scope="module")
def light_mode(page: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return rendered(
        page, tmp_path_factory.mktemp("light"), "--blink-settings=preferredColorScheme=1"
    )


def test_nothing_is_wider_than_the_screen(light_mode: list[dict[str, Any]]) -> None:
    assert [screen["width"] for screen in light_mode] == list(WIDTHS)
    for screen in light_mode:
        assert screen["needed"] <= screen["width"]


def test_all_figures_are_visible(light_mode: list[dict[str, Any]]) -> None:
    for screen in light_mode:
        assert len(screen["images"]) > 30
        for complete, width, height, shown, right in screen["images"]:
            assert complete and width > 0 and height > 0
            assert 150 < shown <= screen["width"] and right <= screen["width"]
        assert all(height > 40 for height in screen["heights"])


def test_a_prompt_is_shown_as_text(light_mode: list[dict[str, Any]]) -> None:
    for screen in light_mode:
        assert screen["scripts"] == 0
        assert f"Is this a script? {EVIL}" in screen["text"]


def luminance(color: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)` (WCAG 2.2)."""
    red, green, blue = (
        c / 12.92 if (c := int(part) / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for part in re.findall(r"\d+", color)[:3]
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_page_is_legible_in_light_and_dark_mode(
    page: Path, tmp_path: Path, light_mode: list[dict[str, Any]]
) -> None:
    dark_mode = rendered(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    for light, dark in zip(light_mode, dark_mode, strict=True):
        assert luminance(light["paper"]) > 0.9 and luminance(dark["paper"]) < 0.05
        for screen in (light, dark):
            bright, dim = sorted(map(luminance, (screen["ink"], screen["paper"])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) > 7
        assert dark["needed"] <= dark["width"]
