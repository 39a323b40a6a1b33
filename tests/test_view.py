"""The page to look at a result: in a real browser where there is one, without a network, whatever the model answered."""

import base64
import io
import json
import os
import re
import shutil

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from moss_audio import Segment
from moss_audio.cli import app
from moss_audio.view import clock, write_page
from moss_audio.writers import write
from tests.conftest import DATA, run_python, waveform


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
ATTACK = "\"'><img src=x onerror=\"document.title='broken'\"></pre></details></script><script>document.title='broken'</script>{{ 7 * 7 }}"
SEGMENTS = [
    Segment(0.2, 1.0, "Good morning, everybody.", "S01", -0.05, -0.2),
    Segment(1.0, 2.0, ATTACK, ATTACK, -0.2, -4.0),
    Segment(None, None, "without a time", "S01"),
    Segment(2.2, None, "مرحبا", "S01", -1.5, -2.0),
]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("view") / "a & b #1.wav"
    soundfile.write(path, waveform(1, 48000), 16000)
    return path


@pytest.fixture(scope="module")
def page(recording):
    result = {
        "audio": recording.name,
        "model": ATTACK,
        "generated_text": f"[0.20][S01]Good{ATTACK}",
        "reasoning": ATTACK,
        "segments": SEGMENTS,
        "repairs": [{"kind": "outside", "message": ATTACK, "position": 0}],
    }
    return write_page(recording, result, recording.with_name("page.html"))


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip("no browser: `apt-get install chromium chromium-driver` for the tests of the page")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.chrome.service.Service(CHROMEDRIVER))
    yield driver
    driver.quit()


def requests(browser) -> list[str]:
    """The URLs that were asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def wait_for(browser, script: str):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20, 0.05).until(lambda driver: driver.execute_script(f"return {script}"))


def find_all(browser, selector: str):
    return browser.find_elements("css selector", selector)


# ------------------------------------------------------------------------------------------------------- in a browser


def test_nothing_is_loaded_and_nothing_runs_but_the_page(browser, page):
    browser.get("about:blank")
    requests(browser)
    browser.get(page.as_uri())
    wait_for(browser, "document.querySelector('audio').readyState >= 1")
    asked = requests(browser)
    assert asked[0] == page.as_uri()
    assert all(url.startswith(("data:", "blob:")) for url in asked[1:])
    assert browser.title == "a & b #1.wav"
    assert browser.get_log("browser") == []  # no error, and nothing that the policy had to stop
    counts = browser.execute_script(
        "return ['img', 'script', '[onerror]', 'details'].map((name) => document.querySelectorAll(name).length)"
    )
    assert counts == [2, 1, 0, 3]
    texts = browser.execute_script(
        "return ['.what', 'pre', '.who-chip', '.bar'].map((name) => "
        "Array.from(document.querySelectorAll(name), (element) => element.textContent))"
    )
    assert texts[0] == [segment.text for segment in SEGMENTS]
    assert texts[1] == ["[0.20][S01]Good" + ATTACK, ATTACK] and ATTACK in texts[2] and ATTACK in texts[3]
    assert (
        browser.execute_script("return Array.from(document.images, (image) => image.naturalWidth > 200)") == [True] * 2
    )


def test_a_script_that_slipped_in_would_not_run(browser, page, tmp_path):
    altered = tmp_path / "altered.html"
    inserted = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\"><img src='http://127.0.0.1:9/x.png'>"
    altered.write_text(page.read_text(encoding="utf-8").replace("<main>", "<main>" + inserted, 1), encoding="utf-8")
    browser.get(altered.as_uri())
    wait_for(browser, "document.querySelector('audio').readyState >= 1")
    assert browser.title == "a & b #1.wav"
    assert len([entry for entry in browser.get_log("browser") if "Content Security Policy" in entry["message"]]) >= 3


def test_a_click_plays(browser, page):
    browser.get(page.as_uri())
    wait_for(browser, "document.querySelector('audio').readyState >= 1")
    assert wait_for(browser, "document.querySelector('audio').duration") == pytest.approx(3.0, abs=0.1)
    find_all(browser, "ol button")[1].click()
    wait_for(browser, "document.querySelector('audio').currentTime > 1.05")
    assert browser.execute_script("return document.querySelector('audio').currentTime") < 2.9
    wait_for(browser, "document.querySelectorAll('.current').length == 2")  # on the axis and in the list
    assert browser.execute_script("return document.querySelector('ol .current').dataset.row") == "1"
    assert float(re.match(r"[\d.]+", find_all(browser, "#head")[0].get_attribute("style").split("left: ")[1])[0]) > 30
    browser.execute_script("scrollTo(0, 0)")  # from under the player, which stays on top
    find_all(browser, "#stop")[0].click()
    find_all(browser, ".bar[data-row='0']")[0].click()
    wait_for(browser, "document.querySelector('audio').paused")
    assert 0.9 < browser.execute_script("return document.querySelector('audio').currentTime") < 1.5
    from selenium.webdriver.common.action_chains import ActionChains

    image = find_all(browser, "img.mel")[0]
    ActionChains(browser).move_to_element_with_offset(image, image.size["width"] // 4, 0).click().perform()
    wait_for(browser, "document.querySelector('audio').currentTime > 2.2")


def test_segments_stand_on_the_axis_by_speaker_and_confidence(browser, page):
    browser.get(page.as_uri())
    lanes = find_all(browser, ".lane")
    assert len(lanes) == 2 and [len(lane.find_elements("css selector", ".bar")) for lane in lanes] == [1, 2]
    axis = find_all(browser, "#axis")[0].rect
    bars = {bar.get_attribute("data-row"): bar for bar in find_all(browser, ".bar")}
    assert (bars["1"].rect["x"] - axis["x"]) / axis["width"] == pytest.approx(1 / 3, abs=0.01)
    assert bars["1"].rect["width"] / axis["width"] == pytest.approx(1 / 3, abs=0.01)
    assert "2" not in bars and [bars[row].get_attribute("class").split()[-1] for row in "013"] == [
        "s1",
        "doubtful",
        "doubtful",
    ]
    assert [meter.get_attribute("value") for meter in find_all(browser, "meter")] == ["0.951", "0.819", "0.223"]
    assert len(find_all(browser, "ol div .what")) == 1  # without a time there is nothing to click
    find_all(browser, "#doubtful")[0].click()
    assert [row.is_displayed() for row in find_all(browser, "ol li")] == [False, True, False, True]
    assert not find_all(browser, "details pre")[1].is_displayed()
    find_all(browser, "summary")[1].click()
    assert find_all(browser, "details pre")[1].is_displayed()


@pytest.mark.parametrize("width, scheme", [(1400, "light"), (360, "dark")])
def test_it_fits_the_screen(width, scheme, browser, page):
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    colors = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", colors)
    try:
        browser.get(page.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", back))) > 380) is (scheme == "light")
        before = find_all(browser, "#axis")[0].rect["width"]
        labels = len(find_all(browser, "#ticks span"))
        browser.execute_script(
            "const zoom = document.getElementById('zoom'); zoom.value = 100; zoom.dispatchEvent(new Event('input'))"
        )
        assert (
            find_all(browser, "#axis")[0].rect["width"] >= before and len(find_all(browser, "#ticks span")) >= labels
        )
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_large_sound_is_played_from_beside_the_page(browser, recording):
    page = write_page(recording, {"generated_text": "A caption."}, recording.parent / "sub" / "page.html", 0.001)
    assert "audio/mpeg" not in page.read_text(encoding="utf-8")
    browser.get(page.as_uri())
    wait_for(browser, "document.querySelector('audio').duration > 2.9")
    assert find_all(browser, "main pre")[0].text == "A caption." and not find_all(browser, "ol, .bar")
    (page.parent.parent / recording.name).rename(recording.with_name("moved.wav"))
    browser.get(page.as_uri())
    wait_for(browser, "!document.querySelector('.error').hidden")
    recording.with_name("moved.wav").rename(recording)
    assert "It is too large for this page" in find_all(browser, ".error")[0].text


# ------------------------------------------------------------------------------------------------------ without a browser


def test_the_page_names_nothing_outside(page):
    text = page.read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text and "@import" not in text and "url(" not in text
    sources = re.findall(r'(?:src|href|srcset|action)="([^"]{0,20})', re.sub(r"&[#\w]+;", "", text))
    assert [source.split(";")[0] for source in sources] == ["data:audio/mpeg", "data:image/png", "data:image/jpeg"]


def test_the_sound_in_the_page_is_that_of_the_recording(recording, page):
    content = re.search(r"data:audio/mpeg;base64,([\w+/=]+)", page.read_text(encoding="utf-8"))[1]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    expected = waveform(1, 48000)
    assert rate == 16000 and abs(len(samples) - 48000) < 2000
    assert np.corrcoef(samples[:46000], expected[:46000])[0, 1] > 0.97  # neither another sound nor a later one


def test_the_pictures_show_when_and_how_high(tmp_path):
    from matplotlib.image import imread

    samples = np.zeros(32000, dtype=np.float32)
    samples[16000:24000] = 0.5 * np.sin(2 * np.pi * 7000 * np.arange(8000) / 16000)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    text = write_page(tmp_path / "a.wav", {"generated_text": "x"}, tmp_path / "p.html").read_text(encoding="utf-8")
    pictures = [
        imread(io.BytesIO(base64.b64decode(content)), kind)
        for kind, content in re.findall(r"data:image/(png|jpeg);base64,([\w+/=]+)", text)
    ]
    drawn = (pictures[0][..., 3] > 0.5).sum(axis=0)  # opaque pixels a column
    quarters = drawn.reshape(4, -1).mean(axis=1)
    assert quarters[2] > 80 and max(quarters[0], quarters[1], quarters[3]) < 5
    bright = pictures[1].astype(float).sum(axis=2)  # (mels from high to low, columns)
    assert bright.shape[0] == 128
    during = bright[:, int(0.55 * bright.shape[1]) : int(0.7 * bright.shape[1])].mean(axis=1)
    assert during.argmax() < 20 and during.max() > 4 * bright[:, : bright.shape[1] // 3].mean()


@pytest.mark.parametrize("samples", [400, 700, 16000 * 61])
def test_any_length_has_a_page(samples, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(samples), 16000)
    result = {"segments": [Segment(0, 1e6, "late"), Segment(5, 2, "x")]}
    assert write_page(tmp_path / "a.wav", result, tmp_path / "p.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00.0"), (59.96, "1:00.0"), (61.25, "1:01.2"), (3723.04, "1:02:03.0")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs `moss-audio view` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["view", *map(str, arguments)])


def test_the_command(command, tmp_path):
    shutil.copy(DATA / "speech.mp3", tmp_path)
    lines = [
        {"audio": "x/speech.mp3", "generated_text": "[0.00]hello[1.00]"},
        {"audio": "b.wav", "generated_text": "y"},
    ]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    done = command("speech.mp3", "lines.jsonl")
    assert done.exit_code == 0 and done.stdout == "lines.html\n", done.stderr
    assert "hello" in (tmp_path / "lines.html").read_text(encoding="utf-8")
    write({**lines[0], "audio": None}, tmp_path / "one.json")
    assert command("speech.mp3", "one.json", "-o", "out/page.html").exit_code == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["page.html"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["missing.wav", "one.json"], "there is no audio file at 'missing.wav'"),
        (["a.wav", "missing.json"], "missing.json"),
        (["a.wav", "two.jsonl"], "two.jsonl has 2 results for a.wav; it needs one"),
        (["b.wav", "two.jsonl"], "two.jsonl has no results for b.wav"),
        (["bad.wav", "one.json"], "bad.wav cannot be read as sound"),
        (["a.wav", "a.wav"], "a.wav is neither JSON nor"),
        (["a.wav", "one.json", "-o", "a.wav"], "`output` a.wav is the recording"),
    ],
)
def test_what_the_command_cannot_do(arguments, message, command, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 16000)
    (tmp_path / "bad.wav").write_text("no sound")
    (tmp_path / "one.json").write_text('{"generated_text": "x"}')
    (tmp_path / "two.jsonl").write_text('{"audio": "a.wav", "generated_text": "x"}\n' * 2)
    done = command(*arguments)
    assert done.exit_code == 2 and message in done.stderr and isinstance(done.exception, SystemExit)
    assert not [name for name in os.listdir(tmp_path) if name.endswith("html")]


def test_matplotlib_is_asked_for_by_name(recording, tmp_path):
    code = (
        "import sys\nfrom moss_audio.view import write_page\n"
        "try:\n    write_page(sys.argv[1], {'generated_text': 'x'}, 'page.html')\nexcept ImportError as error:\n    print(error)"
    )
    output = run_python(code, recording, cwd=tmp_path, blocked=("matplotlib",))
    assert "a page needs matplotlib, which is not installed: `pip install matplotlib jinja2`" in output


@pytest.mark.parametrize(
    "model, shown",
    [
        ("OpenMOSS-Team/MOSS-Audio-4B-Instruct", "OpenMOSS-Team/MOSS-Audio-4B-Instruct"),
        ("/home/someone/tuned/", "tuned"),
        ("C:\\someone\\tuned", "tuned"),
    ],
)
def test_the_page_says_which_model_and_whether_it_was_cut_off(recording, tmp_path, model, shown):
    for cut_off in (True, False):
        result = {"audio": recording.name, "model": model, "generated_text": "Hello.", "cut_off": cut_off}
        text = write_page(recording, result, tmp_path / "page.html").read_text(encoding="utf-8")
        assert f"· {shown}" in text and "someone" not in text
        assert ("the answer was cut off" in text) == cut_off
