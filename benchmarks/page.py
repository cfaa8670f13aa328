"""Measures the page of `ddimctl ui` in a browser: how soon it is there, and how soon the picture follows the hand.

    .venv-ui/bin/python benchmarks/page.py          # in the environment of `make test-ui`, with Chromium

Rewrites the figures in docs/pictures.md. The hand goes to 25 places that are decoded ahead, and to 25 that are not, by each
engine that is here, and a picture counts when the browser has it ready to be shown. Of the latter the server says how long
it took to make them (`Server-Timing`): the share of the model in the same moments, however busy the machine is. What is
beyond the imports is measured between two processes, one of which imports torch and gradio and does nothing else; the
median of three.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from pages import put, table

ROOT = Path(__file__).parent.parent
PLACES = 25
HAND = """async ([first, step, n]) => {
  const root = document.querySelector('.between'), now = root.querySelector('.now');
  const slider = root.querySelector('input'), times = [];
  for (let i = 0; i < n; i++) {
    performance.clearResourceTimings();
    const place = first + step * i, begun = performance.now();
    slider.value = place;
    slider.dispatchEvent(new Event('input'));
    while (now.dataset.place !== `${place}.0`) await new Promise((done) => setTimeout(done, 0));
    await now.decode();
    const took = performance.now() - begun;
    const asked = performance.getEntriesByType('resource').filter((one) => one.name.endsWith(`/${place}.0.png`));
    times.push([took, asked.length ? asked[0].serverTiming[0].duration : 0]);
  }
  return times;
}"""


def imports() -> float:
    """Seconds until torch and gradio are imported, in a process of its own."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, gradio"], check=True)
    return time.perf_counter() - begun


def started(engine: str = "auto") -> tuple[subprocess.Popen[str], str, float]:
    """(a page of the model emoji, its address, the seconds until it answers)."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "ddimctl", "ui", "-m", "emoji", "--port", "0", "-q", "--engine", engine]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    while True:
        try:
            urllib.request.urlopen(url).read()
            return process, url, time.perf_counter() - begun
        except OSError:
            time.sleep(0.01)


def ended(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait()


def hand(url: str) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Of pictures that are ready, and of others: milliseconds until each is there, and those that it took to make it."""
    from playwright.sync_api import sync_playwright

    images = [ROOT / f"models/emoji/held-out/00{i}.png" for i in range(2)]
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab: Any = browser.new_page()
        tab.goto(url)
        tab.get_by_role("tab", name="Interpolate").click()
        part = tab.locator("[role=tabpanel]:visible")
        part.locator("input[type=file]").first.set_input_files(images)
        part.locator(".file-preview").first.wait_for()
        part.get_by_role("button", name="Interpolate").click()
        tab.locator(".between[data-ready='33']").wait_for(timeout=120_000)
        ready, new = (tab.evaluate(HAND, [first, 4, PLACES]) for first in (4, 2))
        browser.close()
    return ready, new


def engines() -> list[str]:
    return ["torch", *(["openvino"] if importlib.util.find_spec("openvino") else [])]


def rows_of(engine: str) -> list[list[str]]:
    """What the hand sees by that engine."""
    process, url, _ = started(engine)
    ready, new = hand(url)
    ended(process)
    rows = []
    for said, taken in (("a picture that is decoded ahead", ready), ("any other, S = 10", new)):
        times = [took for took, _ in taken]
        rows.append([f"{engine}: slider to {said}", f"{statistics.median(times):.0f} ms", f"{max(times):.0f} ms"])
    shares = [100 * made / took for took, made in new]
    rows.append(
        [f"{engine}: the share of decoding in it", f"{statistics.median(shares):.0f} %", f"{max(shares):.0f} %"]
    )
    return rows


def main() -> None:
    beyond = []
    for _ in range(3):
        process, _, seconds = started()
        ended(process)
        beyond.append(max(0.0, seconds - imports()))  # two starts differ by more than what is between them
    rows = [row for engine in engines() for row in rows_of(engine)]
    rows.append(
        [
            "page ready, beyond the imports of torch and gradio",
            f"{statistics.median(beyond):.1f} s",
            f"{max(beyond):.1f} s",
        ]
    )
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    text = table([f"the model emoji, OMP_NUM_THREADS={threads}", "median", "most"], rows)
    put(ROOT / "docs/pictures.md", __file__, text)
    print(text)


if __name__ == "__main__":
    main()
