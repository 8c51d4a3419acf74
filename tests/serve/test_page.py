"""The page in a real headless Chromium; skipped where there is none."""

import asyncio
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import uvicorn

from mtrec.recommender import Recommender
from mtrec.serve.host import ModelHost
from mtrec.serve.routes import Limits, create_fastapi

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from small_bundle import Small

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.anyio,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
FLAGS += ["--remote-debugging-port=0"]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def serve(bundles: Path, api_key: str | None = None) -> Iterator[str]:
    host = ModelHost(lambda path: Recommender.load(path, threads=1))
    host.open(str(bundles))
    app = create_fastapi(host, Limits(1 << 20, 16, 100), api_key=api_key)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()
    host.close()


@pytest.fixture(scope="module")
def url(small: "Small") -> Iterator[str]:
    yield from serve(small.bundles)


@pytest.fixture(scope="module")
def friends_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from small_bundle import make_small

    yield from serve(make_small(tmp_path_factory.mktemp("friends"), social=True).bundles)


@pytest.fixture(scope="module")
def locked_url(small: "Small") -> Iterator[str]:
    yield from serve(small.bundles, api_key="geheim")


class Page:
    """A page in Chromium, driven over its debugging socket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._sent = 0
        self.hosts: set[str] = set()
        self.complaints: list[str] = []

    async def send(self, method: str, **params: object) -> dict[str, Any]:
        self._sent += 1
        await self._socket.send_json({"id": self._sent, "method": method, "params": params})
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("id") == self._sent:
                result: dict[str, Any] = message["result"]
                return result
            self._note(message["method"], message["params"])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.hosts.add(params["request"]["url"].split("/")[2])
        elif method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(params)[:300])

    async def run(self, script: str) -> Any:
        answer = await self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, script: str) -> Any:
        """Run a script until it gives something true, and give that."""
        for _ in range(200):
            if value := await self.run(script):
                return value
            await asyncio.sleep(0.05)
        raise AssertionError(f"never true: {script}; the page says {await self.text()}")

    async def text(self) -> str:
        return str(await self.run("document.body.innerText"))

    async def titles(self) -> list[str]:
        found: list[str] = await self.until(TITLES)
        return found

    async def type(self, field: str, text: str) -> None:
        await self.run(f"$('{field}').focus(); $('{field}').select && $('{field}').select()")
        await self.send("Input.insertText", text=text)


LOADED = "document.readyState === 'complete' && typeof begin === 'function'"
TITLES = "[...document.querySelectorAll('#list .title')].map((node) => node.textContent)"
NOTE = "document.getElementById('note').textContent"


@asynccontextmanager
async def opened(url: str, folder: Path, **screen: object) -> "AsyncIterator[Page]":
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        told = folder / "DevToolsActivePort"
        while not (told.exists() and told.read_text().strip()):
            await asyncio.sleep(0.05)
        port = told.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
            address = tabs[0]["webSocketDebuggerUrl"]
            async with session.ws_connect(address, max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Network", "Log"):
                    await page.send(f"{domain}.enable")
                size = {"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                await page.send("Emulation.setDeviceMetricsOverride", **{**size, **screen})
                await page.send("Page.navigate", url=url)
                await page.until(
                    "document.readyState === 'complete' && typeof begin === 'function'"
                )
                yield page
    finally:
        browser.terminate()
        browser.wait()


async def test_a_user_is_typed_and_k_and_weights_change_the_list(url: str, tmp_path: Path) -> None:
    async with opened(url, tmp_path) as page:
        await page.until("document.querySelectorAll('#weights input').length === 3")
        await page.type("user", "u1")
        before = await page.titles()
        await page.run("$('k').value = 2; $('k').oninput()")
        await page.until(f"{TITLES}.length === 2")
        await page.run("$('weight-stars').value = 1; $('weight-stars').oninput()")
        text = await page.text()

    assert "For user u1" in text
    assert "ready" in text
    assert len(before) > 2
    assert page.complaints == []
    assert page.hosts == {url.split("/")[2]}


async def test_a_history_built_by_clicking_gives_and_changes_a_list(
    url: str, tmp_path: Path
) -> None:
    async with opened(url, tmp_path) as page:
        await page.run("document.querySelector('[value=history]').click()")
        await page.until("document.querySelectorAll('#found button').length > 3")
        await page.run("document.querySelectorAll('#found button')[1].click()")
        await page.until(f"{NOTE}.includes('1 items of history')")
        first = await page.titles()
        await page.run("document.querySelectorAll('#found button')[2].click()")
        await page.until(f"{NOTE}.includes('2 items of history')")
        second = await page.titles()

    assert "garden story number 1" not in first
    assert "kitchen story number 2" not in second
    assert first != second
    assert page.complaints == []


async def test_a_user_is_picked_and_the_history_shown_and_changed(url: str, tmp_path: Path) -> None:
    async with opened(url, tmp_path) as page:
        await page.until("document.querySelectorAll('#users option').length === 8")
        await page.type("user", "u1")
        await page.until("document.querySelectorAll('#known li').length === 4")
        told = await page.run("$('stored-count').textContent")
        newest = await page.run("document.querySelector('#known li span').textContent")
        await page.run("$('copy').click()")
        await page.until(f"{NOTE}.includes('4 items of history')")
        last = await page.run("document.querySelector('#history li:last-child span').textContent")
        await page.type("query", "x")
        await page.run("document.querySelector('[value=user]').click()")
        await page.type("user", "nobody")
        await page.until(f"{NOTE}.includes('nobody')")
        hidden = await page.run("$('stored').hidden")

    assert told == "4 events"
    assert newest == last
    assert hidden
    # What the browser itself says of the 404 of an unknown user is no complaint of the page's.
    assert [text for text in page.complaints if "404" not in text] == []


async def test_a_new_bundle_is_named_and_items_are_asked_for_anew(
    url: str, small: "Small", tmp_path: Path
) -> None:
    async with opened(url, tmp_path) as page:
        await page.until("$('model').textContent.includes('items')")
        await page.run("state.version = 'an older one'; state.items.set('gone', {}); watch(); 1")
        await page.until(f"state.version === '{small.version}' && !state.items.has('gone')")
        shown = await page.run("$('model').textContent")

        await page.run("state.tasks = []; $('weights').replaceChildren(); renew(); 1")
        await page.until(
            "state.tasks.length > 0 && document.querySelectorAll('#weights input').length"
        )

    assert shown.startswith(small.version)
    assert page.complaints == []


async def test_friends_of_a_user_are_shown_and_lead_to_them(
    friends_url: str, tmp_path: Path
) -> None:
    async with opened(friends_url, tmp_path) as page:
        await page.until("document.querySelectorAll('#weights input').length === 3")
        await page.type("user", "u1")
        name = await page.until("document.querySelector('#friend-list button')?.textContent")
        await page.run("document.querySelector('#friend-list button').click()")
        await page.until(f"{NOTE}.includes('For user {name}')")

    assert page.complaints == []


async def test_a_text_in_any_language_finds_similar_items(url: str, tmp_path: Path) -> None:
    async with opened(url, tmp_path) as page:
        await page.run("document.querySelector('[value=similar]').click()")
        await page.type("text", "garden 故事")
        titles = await page.titles()

    assert titles[0].startswith("garden")
    assert page.complaints == []


async def test_on_a_phone_nothing_is_cut_off_and_dark_mode_is_dark(
    url: str, tmp_path: Path
) -> None:
    async with opened(url, tmp_path, width=360, height=700) as page:
        await page.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark"}],
        )
        await page.type("user", "u1")
        await page.titles()
        width = await page.run("document.documentElement.scrollWidth")
        background = await page.run("getComputedStyle(document.body).backgroundColor")

    assert width <= 360
    assert background == "rgb(17, 21, 27)"


async def test_the_modes_can_be_chosen_with_the_keyboard(url: str, tmp_path: Path) -> None:
    async with opened(url, tmp_path) as page:
        await page.run("document.querySelector('[value=user]').focus()")
        for kind in ("rawKeyDown", "keyUp"):
            await page.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key="ArrowRight",
                code="ArrowRight",
                windowsVirtualKeyCode=39,
            )
        await page.until("!document.getElementById('pane-history').hidden")


async def test_the_page_asks_for_the_key_and_then_works(locked_url: str, tmp_path: Path) -> None:
    async with opened(locked_url, tmp_path) as page:
        await page.until("$('lock').open")
        await page.type("key", "geheim")
        await page.run("document.querySelector('#key-form button').click()")
        await page.until("document.querySelectorAll('#weights input').length === 3")
        await page.type("user", "u1")
        await page.titles()


async def test_an_error_is_shown_and_goes_when_mended(url: str, tmp_path: Path) -> None:
    async with opened(url, tmp_path) as page:
        await page.until("document.querySelectorAll('#weights input').length === 3")
        await page.run("$('weight-click').value = 0; $('weight-click').oninput()")
        await page.type("user", "u1")
        await page.until("!$('error').hidden && $('error').textContent.includes('weights')")
        await page.run("$('weight-click').value = 1; $('weight-click').oninput()")
        await page.until("$('error').hidden")
