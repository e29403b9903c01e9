"""The dashboard in Debian's Chromium: what a person sees, and that nothing leaves the machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from fleet import Sphere, build_activity, device_config, enrol, make_keys, run, sphere
from playwright.sync_api import Page, sync_playwright
from tinylcm import Device

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# Pixels in the colour of the first series: axes and grid have others, so only a drawn line counts.
DRAWN = """canvas => {
  const accent = document.createElement('canvas').getContext('2d');
  accent.fillStyle = getComputedStyle(document.documentElement).getPropertyValue('--accent').trim();
  const wanted = accent.fillStyle.match(/\\w\\w/g).map(part => parseInt(part, 16));
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0;
  for (let i = 0; i < pixels.length; i += 4)
    if (wanted.every((part, k) => Math.abs(pixels[i + k] - part) < 8) && pixels[i + 3] > 200) count++;
  return count;
}"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sphere]:
    with sphere(tmp_path) as running:
        yield running


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(viewport={"width": 1200, "height": 900})
        yield context.new_page()
        browser.close()


def samples(activity: Path) -> np.ndarray:
    series = np.load(activity / "data" / "basic_motions.npz")["x_test"]
    joined = np.concatenate([series[index].T for index in np.random.default_rng(7).permutation(len(series))])
    return np.concatenate([joined, joined + 4]).astype(np.float32)


def wait_for_points(page: Page, chart: str, *, more_than: int) -> None:
    """Playwright's own wait_for_function needs eval, which the page's policy forbids."""
    for _ in range(150):
        if int(page.get_attribute(f"[data-chart={chart}]", "data-points") or 0) > more_than:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"the {chart} chart never got more than {more_than} points")


def test_a_person_sees_the_fleet_the_live_charts_and_the_drift(
    server: Sphere, page: Page, tmp_path: Path, activity: Path
) -> None:
    requests: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))

    page.goto(f"{server.url}/login#token={server.token}&next=/devices")
    page.wait_for_url("**/devices")
    assert "No devices yet" in page.inner_text("main")

    keys = make_keys(tmp_path / "keys")
    config = device_config(tmp_path / "device")
    identity = enrol(config, server.join(keys / "root.pub"))
    server.client.upload(build_activity(activity, keys, tmp_path / "a.tlm"), "activity")
    server.client.deploy("activity", "1.0.0")
    with Device.open(config, background=False) as device:
        device.sync()
        model = device.model("activity")
        page.wait_for_selector("text=watch-01", timeout=15_000)  # by the page's own refresh
        stream, chunks = model.stream(samples(activity)), 0
        for prediction in stream:
            if prediction.last_sample % 500 == 499:
                device.agent.flush_metrics()
                chunks += 1
        device.sync()

        page.click("text=watch-01")
        page.wait_for_selector("[data-chart=confidence] canvas", timeout=15_000)
        page.wait_for_selector("[data-chart=latency] canvas")
        wait_for_points(page, "latency", more_than=2)
        for chart in ("confidence", "latency"):
            assert page.eval_on_selector(f"[data-chart={chart}] canvas", DRAWN) > 100
        assert page.locator("svg.histogram rect.current").count() >= 4
        assert "online" in page.inner_text("#facts") and "activity" in page.inner_text("#facts")

        before = int(page.get_attribute("[data-chart=confidence]", "data-points") or 0)
        for _ in range(5):
            model.infer(np.zeros((100, 6)))
        device.sync()
        wait_for_points(page, "confidence", more_than=before)

    page.click("#drift h2 a")
    page.wait_for_selector("text=Reference and current")
    text = page.inner_text("main")
    assert "threshold" in text and "window" in text
    assert page.locator("svg.histogram rect.reference").count() >= 4
    page.click("summary")
    assert page.locator("details tbody tr").count() >= 4

    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"{server.url}/devices/{identity.device_id}")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    assert {urlsplit(url).hostname for url in requests if not url.startswith("data:")} == {"127.0.0.1"}
    assert problems == []
    assert not any(server.token in url.split("#")[0] for url in requests)


def test_signing_out_and_back_is_possible_by_hand(server: Sphere, page: Page) -> None:
    page.goto(f"{server.url}/devices")
    page.wait_for_url("**/login?next=%2Fdevices")
    page.fill("#token", "ts_wrong")
    page.click("form.sign-in button")
    assert page.locator("[role=alert]").count() == 1
    page.fill("#token", server.token)
    page.click("form.sign-in button")
    page.wait_for_url("**/devices")
    page.click("text=Sign out")
    page.wait_for_url("**/login")
    page.goto(f"{server.url}/devices")
    page.wait_for_url("**/login?next=%2Fdevices")


def test_a_person_signs_in_with_a_name_and_a_password(page: Page, server: Sphere, tmp_path: Path) -> None:
    data, typed = ["--data", str(server.data)], "correct horse battery\n"
    run("person", "create", "ada@example.org", "--role", "viewer", *data, stdin=typed)
    page.goto(f"{server.url}/devices")
    page.wait_for_url("**/login?next=%2Fdevices")
    page.fill("#name", "ada@example.org")
    page.fill("#password", "wrong horse battery")
    page.click("button")
    assert "is not right" in page.inner_text("[role=alert]")
    page.fill("#name", "ada@example.org")
    page.fill("#password", "correct horse battery")
    page.screenshot(path=tmp_path / "sign-in.png")
    page.click("button")
    page.wait_for_url("**/devices")
    assert "ada@example.org" in page.inner_text("body")
