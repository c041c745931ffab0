"""The web page, opened in a headless Chromium where there is one."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arvid.evaluation.records import load, save
from arvid.report._clips import galleries
from arvid.report.comparison import Comparison
from arvid.report.page import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


class Browser:
    """A Chromium steered through its DevTools protocol over a pipe: JSON messages that end in a zero byte."""

    def __init__(self, program: str, profile: Path) -> None:
        commands, answers = os.pipe(), os.pipe()
        # moved out of the way of 3 and 4, where the browser expects its ends
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands[0], answers[1])]
        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=lambda: (os.dup2(ends[0], 3), os.dup2(ends[1], 4)),
            close_fds=False,
            stderr=subprocess.DEVNULL,
        )
        for fd in (*ends, commands[0], answers[1]):
            os.close(fd)
        self.writer, self.reader = commands[1], answers[0]
        self.pending = b""
        self.events: list[dict[str, Any]] = []
        self.number = 0
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events on the way are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def run(self, script: str) -> Any:
        """Value of an expression in the page; a promise is awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, page: Path, width: int = 1600, height: int = 1000) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        self.wait_for("document.readyState === 'complete' && location.protocol === 'file:'")

    def wait_for(self, condition: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"never became true: {condition}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = {"text": "\r"} if key == "Enter" else {}
        code = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}[key]
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **(text if kind == "keyDown" else {}),
            )

    def wait_for_file(self, path: Path, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not path.is_file():
            assert time.monotonic() < end, f"{path} was never written"
            time.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def complaints(self) -> list[dict[str, Any]]:
        """Everything the console shows, exceptions, and requests beyond the file and its data URIs."""
        found = []
        for event in self.events:
            kind = event.get("method")
            if kind in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(event["params"])
            if kind == "Network.requestWillBeSent":
                url = event["params"]["request"]["url"]
                found += [] if url.startswith(("file:", "data:")) else [event["params"]]
        return found

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.writer)
        os.close(self.reader)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.pending:
            chunk = os.read(self.reader, 1 << 16)
            assert chunk, "the browser has ended"
            self.pending += chunk
        message, self.pending = self.pending.split(b"\0", 1)
        return dict(json.loads(message))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    started = Browser(program, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def report(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    write_report(runs, out, title="Sprites <script>alert(2)</script> & co", max_prompts=2)
    return out


def test_the_page_opens_without_complaints(browser: Browser, report: Path) -> None:
    for width in (1600, 390):
        browser.open(report / "index.html", width=width)
        browser.run("document.getElementById('videos').scrollIntoView()")
        browser.wait_for("document.querySelector('video').currentTime > 0")
        assert browser.complaints() == []
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")


def test_its_videos_decode_and_play_together(browser: Browser, report: Path) -> None:
    browser.open(report / "index.html")
    assert browser.run("document.querySelectorAll('.clips video').length") == 2 * 2 * 7
    for i in range(2 * 2 * 7):
        browser.run(f"(v = document.querySelectorAll('.clips video')[{i}]).scrollIntoView()")
        browser.wait_for("v.readyState >= 2 && v.videoWidth === 32 && v.currentTime > 0")
    browser.run("document.querySelector('.clips').scrollIntoView()")
    browser.run("document.getElementById('restart').click()")
    browser.wait_for("(first = document.querySelector('video')).currentTime > 0.5")
    apart = "[...first.closest('.clips').querySelectorAll('video')]"
    apart += ".map(v => Math.abs(v.currentTime - first.currentTime))"
    assert max(browser.run(apart)) < 0.3
    assert browser.complaints() == []


def test_playback_can_be_paused_and_moved(browser: Browser, report: Path) -> None:
    browser.open(report / "index.html")
    browser.run("(v = document.querySelector('video')).scrollIntoView()")
    browser.wait_for("v.currentTime > 0 && !v.paused")
    browser.run("document.getElementById('toggle').click()")
    browser.wait_for("v.paused && document.getElementById('toggle').textContent === 'Play'")
    browser.run(
        "(s = document.getElementById('seek')).value = 0.5; s.dispatchEvent(new Event('input'))"
    )
    browser.wait_for("Math.abs(v.currentTime - v.duration / 2) < 0.1")


def test_its_table_matches_the_json_beside_it(browser: Browser, report: Path) -> None:
    browser.open(report / "index.html")
    cells = browser.run(
        "[...document.querySelectorAll('.numbers td[data-key]')].map(td => "
        "[td.closest('tr').dataset.row, td.dataset.key, td.textContent, "
        "td.dataset.value ?? null, td.classList.contains('best')])"
    )
    shown = {(row, key): (text, value, best) for row, key, text, value, best in cells}
    table = json.loads((report / "table.json").read_text())
    for row in table["rows"]:
        for column in table["columns"]:
            cell = row["cells"].get(column["key"], {"text": "", "value": None, "best": False})
            text, value, best = shown.pop((row["name"], column["key"]), ("", None, False))
            assert (text, best) == (cell["text"], cell["best"])
            assert (None if value is None else float(value)) == cell["value"]
    assert not shown


def test_a_heading_sorts_and_keeps_reference_rows_on_top(browser: Browser, report: Path) -> None:
    browser.open(report / "index.html")
    browser.run("(b = document.querySelector('.numbers thead button')).click()")
    rows = "[...b.closest('table').querySelectorAll('tbody tr')].map(tr => tr.dataset.row)"
    references = ["real", "reconstruction", "first frame repeated", "untrained"]
    assert browser.run(rows) == [*references, "nova", "next_token", "next_block"]
    browser.run("b.click()")
    assert browser.run(rows) == [*references[::-1], "next_block", "next_token", "nova"]


def test_keys_sort_a_table(browser: Browser, report: Path) -> None:
    browser.open(report / "index.html")
    browser.run("(b = document.querySelector('.numbers thead button')).focus()")
    browser.press("Enter")
    assert browser.run("b.closest('th').getAttribute('aria-sort')") == "ascending"
    browser.press("Enter")
    assert browser.run("b.closest('th').getAttribute('aria-sort')") == "descending"


def test_a_clip_is_enlarged_by_click_and_keys(browser: Browser, report: Path) -> None:
    browser.open(report / "index.html")
    browser.run("(all = [...document.querySelector('.strip').querySelectorAll('.enlarge')])[0]")
    browser.run("all[1].focus()")
    browser.press("Enter")
    assert browser.run("(large = document.getElementById('large')).open")
    names = "[document.getElementById('large-name').textContent, large.querySelector('video').src]"
    source = "all[{}].querySelector('video').dataset.src"
    assert browser.run(names) == ["reconstruction", browser.run(source.format(1))]
    browser.wait_for("large.querySelector('video').currentTime > 0")
    browser.run("document.getElementById('close').focus()")
    browser.press("ArrowRight")
    assert browser.run(names) == ["first frame repeated", browser.run(source.format(2))]
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    assert browser.run(names)[0] == "real"
    browser.press("Escape")
    browser.wait_for("!large.open && document.activeElement === all[0]")
    browser.run("all[3].click()")
    assert browser.run("large.open")
    browser.run("document.getElementById('close').click()")
    assert not browser.run("large.open")
    assert browser.complaints() == []


def test_clips_and_tables_can_be_downloaded(browser: Browser, report: Path, tmp_path: Path) -> None:
    browser.open(report / "index.html")
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for name in ("table.csv", "table.tex", "table.json", "table.md"):
        browser.run(f"document.querySelector('a[download=\"{name}\"]').click()")
        browser.wait_for_file(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes()
    browser.run("document.querySelector('.enlarge').click()")
    browser.run("document.getElementById('download').click()")
    clip = tmp_path / browser.run("document.getElementById('download').download")
    assert clip.name == "real-img-src-x-onerror-alert-1-moves-left.mp4"
    browser.wait_for_file(clip)
    assert clip.read_bytes()[4:8] == b"ftyp"


def test_the_theme_follows_the_system_until_the_button_is_pressed(
    browser: Browser, report: Path
) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    found = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.call("Emulation.setEmulatedMedia", features=features)
        browser.open(report / "index.html")
        found[scheme] = browser.run(paper)
    assert found == {"light": "rgb(251, 250, 247)", "dark": "rgb(20, 24, 28)"}
    browser.run("document.getElementById('theme').click()")
    assert browser.run(paper) == found["light"]
    browser.open(report / "index.html")
    assert browser.run(paper) == found["light"]  # remembered
    browser.run("localStorage.clear()")
    browser.call("Emulation.setEmulatedMedia", features=[])


def test_small_clips_have_sharp_pixels_on_request(browser: Browser, report: Path) -> None:
    browser.open(report / "index.html")
    browser.run("(v = document.querySelector('.clips video')).scrollIntoView()")
    browser.wait_for("v.videoWidth === 32")
    assert browser.run("getComputedStyle(v).imageRendering") == "pixelated"
    browser.run("document.getElementById('pixels').click()")
    assert browser.run("getComputedStyle(v).imageRendering") == "auto"


def test_everything_has_a_name_for_screen_readers(browser: Browser, report: Path) -> None:
    browser.open(report / "index.html")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "link", "slider", "combobox", "checkbox", "image", "table", "columnheader")
    named = {role: [] for role in roles}
    for node in nodes:
        if not node["ignored"] and (role := node["role"]["value"]) in named:
            named[role].append(node["name"]["value"].strip())
    assert all(named[role] for role in roles), named
    # A table's corner is an empty heading by design.
    assert all(name for role in roles if role != "columnheader" for name in named[role])
    assert "FD (sprites) lower is better" in " ".join(" ".join(named["button"]).split())
    assert any(name.startswith("Enlarge nova: ") for name in named["button"])


def test_records_are_linked_from_the_page(report: Path) -> None:
    page = (report / "index.html").read_text()
    folders = set(re.findall(r'<a href="([^"]+evaluation/)"', page))
    assert len(folders) == 7
    assert all((report / folder / "sprites-t2v.json").is_file() for folder in folders)


def test_text_from_outside_stays_text(browser: Browser, report: Path) -> None:
    browser.open(report / "index.html")
    prompts = browser.run("[...document.querySelectorAll('.prompt span')].map(e => e.textContent)")
    assert prompts[0] == "<img src=x onerror=alert(1)> moves left"
    assert browser.run("document.querySelector('h1').textContent").endswith("</script> & co")
    assert browser.run("document.querySelectorAll('img[onerror]').length") == 0
    assert browser.run("document.querySelectorAll('script').length") == 1


def test_the_page_refers_to_nothing_outside(report: Path) -> None:
    page = re.sub(r"base64,[A-Za-z0-9+/=]+", "", (report / "index.html").read_text())
    page = re.sub(r' xmlns(:xlink)?="[^"]*"', "", page)
    assert not re.search(r"https?:|src=\"(?!data:)|url\((?!#)|@import", page)


def test_the_same_records_give_the_same_page(
    runs: list[Path], report: Path, tmp_path: Path
) -> None:
    write_report(runs, tmp_path, title="Sprites <script>alert(2)</script> & co", max_prompts=2)
    assert (tmp_path / "index.html").read_bytes() == (report / "index.html").read_bytes()


def test_prompts_that_are_left_out_are_counted(report: Path) -> None:
    page = (report / "index.html").read_text()
    assert page.count('class="strip"') == 2 * 2
    assert page.count("Not shown here: 1 more") == 2


def test_a_clip_that_is_gone_leaves_a_gap(
    make_records: Callable[..., list[Any]],
    save_run: Callable[..., Path],
    tmp_path: Path,
) -> None:
    found = [save_run(tmp_path / n, make_records(n, ["a", "b"])) for n in ("nova", "next_token")]
    (found[1] / "evaluation/sprites-t2v/001.mp4").unlink()
    write_report(found, tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert (page.count("data-src="), page.count(">no clip<")) == (7, 1)


def test_a_page_without_clips_and_curves_still_comes(
    make_records: Callable[..., list[Any]], save_run: Callable[..., Path], tmp_path: Path
) -> None:
    write_report([save_run(tmp_path / "real", make_records("real"))], tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert "<video" not in page
    assert "<svg" not in page


def test_clips_stand_beside_those_of_the_same_first_frame(
    make_records: Callable[..., list[Any]], save_run: Callable[..., Path], tmp_path: Path
) -> None:
    names = ("real", "nova", "next_token")
    found = [save_run(tmp_path / name, make_records(name, ["a", "b"])[1:]) for name in names]
    record = found[0] / "evaluation/sprites-fp.json"
    without = tuple(replace(clip, first_frame=None) for clip in load(record).clips)
    save(replace(load(record), clips=without), record)
    record = found[2] / "evaluation/sprites-fp.json"
    save(replace(load(record), clips=load(record).clips[::-1]), record)
    (gallery,) = galleries(Comparison.from_runs(found), max_prompts=8)
    assert [set(strip.clips) for strip in gallery.strips] == [set(names)] * 2
    video = (found[2] / "evaluation/sprites-fp/000.mp4").read_bytes()
    shown = gallery.strips[0].clips["next_token"].split(",")[1]
    assert base64.b64decode(shown) == video
