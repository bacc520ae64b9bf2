"""The page in a real Chromium: what one types, sees, points at and hears."""

import re
import runpy
import shutil
import subprocess
import time
from dataclasses import replace

import pytest

from seugpt.server.batch import Batch
from tests.helpers import ROOT

STATIC = ROOT / "seugpt" / "server" / "static"
AXE = "axe-core@4.14.1"
IMAGES = ROOT / "docs" / "images"
WIDTHS = [360, 1280]
TIMEOUT = 60_000  # ms
VIEWS = ("tokens", "attention", "next", "lens", "surprisal")


def source(name):
    return (STATIC / name).read_text(encoding="utf-8")


# Without a browser


def strings():
    """{key: [English, Portuguese]} of strings.js."""
    text = '"(?:[^"\\\\]|\\\\.)*"'
    found = re.findall(rf"^  (\w+): \[\s*({text}),\s*({text}),?\s*\],", source("strings.js"), re.M)
    return {key: texts for key, *texts in found}


def test_every_text_is_in_both_languages():
    assert len(strings()) == len(re.findall(r"^  \w+: \[", source("strings.js"), re.M))
    for key, texts in strings().items():
        english, portuguese = ({*re.findall(r"\{\w+\}", text)} for text in texts)
        assert english == portuguese, key


def test_every_text_is_asked_for_and_there():
    html = source("index.html")
    scripts = "".join(source(path.name) for path in STATIC.glob("*.js") if path.stem != "strings")
    asked = set(re.findall(r'data-(?:t|label|empty)="(\w+)"', html))
    asked |= set(re.findall(r'"data-(?:t|label|empty)": "(\w+)"', scripts))
    asked |= set(re.findall(r'\bt\("(\w+)"', scripts))
    assert asked <= set(strings())
    spoken = {key for key in strings() if re.search(rf'["`]{key}["`]|\b{key}:', html + scripts)}
    derived = {f"{name}Help" for name in strings()}  # of controls and views
    assert set(strings()) <= spoken | derived


def test_errors_are_translated_by_codes_that_the_server_sends():
    table = source("strings.js").partition("ERRORS_IN_PORTUGUESE = {")[2].partition("};")[0]
    codes = set(re.findall(r"^  (\w+):", table, re.M))
    server = (ROOT / "seugpt" / "server").glob("*.py")
    assert codes
    assert codes <= set(re.findall(r'code="(\w+)"', "".join(path.read_text() for path in server)))


def test_no_script_or_style_stands_in_the_page():
    """The Content-Security-Policy forbids it, and no text may become HTML."""
    html = source("index.html")
    assert not re.search(r"<style|style=|\son\w+=|<script(?! type=\"module\" src=)", html)
    for path in STATIC.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(",
            path.read_text(encoding="utf-8"),
        ), path.name


@pytest.mark.parametrize("image", [IMAGES / "serve.png", IMAGES / "pt" / "serve.png"])
def test_the_screenshots_are_small(image):
    assert 20_000 < image.stat().st_size < 200_000


# In a browser


@pytest.fixture(scope="module")
def tool():
    pytest.importorskip("playwright", reason="the package playwright is not installed")
    return runpy.run_path(str(ROOT / "docs" / "tools" / "page_screenshot.py"))


@pytest.fixture(scope="module")
def browser(tool):
    if tool["find_chromium"]() is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with tool["running_browser"]() as browser:
        yield browser


@pytest.fixture
def server(make_server, trained):
    """It serves random models, and shows the run in `trained`."""
    return make_server()


@pytest.fixture
def open_page(browser, server):
    """open_page(width, **context options): a page; at the end no error may have been reported."""
    problems = []
    contexts = []

    def open_one(width=1280, **options):
        options = {"locale": "en-US", "viewport": {"width": width, "height": 800}, **options}
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: check_host(request.url))
        page.goto(server.url)
        page.wait_for_selector("#model option", state="attached")
        return page

    def check_host(url):
        if not url.startswith(server.url):
            problems.append(f"a request to {url}")

    yield open_one
    for context in contexts:
        context.close()
    assert not problems


def tokens(page, box="#text"):
    return page.locator(f"{box} [role=option]")


def wait_for_count(locator, count):
    """Not page.wait_for_function, which needs an eval that the page's policy forbids."""
    from playwright.sync_api import expect

    expect(locator).to_have_count(count, timeout=TIMEOUT)


def write(page, prompt="o menino ", length=40):
    set_length(page, length)
    page.fill("#prompt", prompt)
    page.click("#start")
    page.wait_for_selector("#copy:enabled")


def set_length(page, length, box="write"):
    details = page.locator(f"#{box} details.settings")
    if details.get_attribute("open") is None:
        details.locator("summary").first.click()
    page.fill(f"#{box}-controls-max_tokens", str(length))


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def show_view(page, view):
    page.locator(f"#views label:has([value={view}])").click()
    filled = {"tokens": ".chips li", "attention": ".strip [role=option]", "next": ".bars li"}
    filled |= {"lens": "td", "surprisal": ".tokens [role=option]"}
    page.wait_for_selector(f"#drawing {filled[view]}")


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_a_text_streams_in_without_moving_the_page(open_page, width, monkeypatch):
    advance = Batch.advance

    def slow_advance(batch):
        time.sleep(0.01)  # the text must not end before it is stopped
        return advance(batch)

    monkeypatch.setattr(Batch, "advance", slow_advance)
    page = open_page(width)
    set_length(page, 4000)
    page.fill("#prompt", "o menino ")
    places = "['start', 'text', 'likeliest-title'].map(id => document.getElementById(id).offsetTop)"
    before = page.evaluate(places)
    page.click("#start")
    for length in (20, 60):
        page.wait_for_selector(f"#text [role=option]:nth-child({length})", state="attached")
    assert page.locator("#stop").is_enabled()
    assert page.evaluate(places) == before
    page.click("#stop")
    page.wait_for_selector("#copy:enabled")
    assert tokens(page).count() < 4000
    assert "Stopped" in page.inner_text("#write-status")
    assert overflow(page) <= 0


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_a_token_is_exchanged_and_the_text_goes_on_from_there(open_page, width):
    page = open_page(width)
    write(page)
    texts = tokens(page).all_inner_texts()
    assert len(texts) == 40
    tokens(page).nth(5).hover()
    page.wait_for_selector("#likeliest button")
    assert page.locator("#likeliest button").count() in (10, 11)  # 11: an unlikely one was drawn
    alternative = page.locator("#likeliest li:not(.chosen) button").first
    label = alternative.locator(".label").inner_text()
    alternative.click()
    wait_for_count(tokens(page), 46)
    page.wait_for_selector("#copy:enabled")
    changed = tokens(page).all_inner_texts()
    assert changed[:5] == texts[:5]
    assert tokens(page).nth(5).get_attribute("aria-label").startswith(f"{label}, ")
    assert "chosen" in tokens(page).nth(5).get_attribute("class")
    page.click("#more")
    wait_for_count(tokens(page), 86)


@pytest.mark.slow
def test_the_keyboard_reaches_everything(open_page):
    page = open_page()
    page.focus("#tab-write")
    page.keyboard.press("Tab")  # the tabs are one stop
    assert page.evaluate("document.activeElement.id") == "model"
    page.focus("#prompt")
    page.fill("#prompt", "o ")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#copy:enabled")
    page.focus("#text")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    selected = page.locator("#text [aria-selected=true]")
    assert page.get_attribute("#text", "aria-activedescendant") == selected.get_attribute("id")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    focused = "document.activeElement === document.querySelectorAll('#likeliest button')[{}]"
    assert page.evaluate(focused.format(1))
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # on the first alternative
    wait_for_count(tokens(page), 203)
    page.focus("#tab-write")
    page.keyboard.press("ArrowRight")
    assert page.locator("#inside").is_visible()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#compare").is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_each_view_shows_the_inside_of_a_model(open_page, width):
    page = open_page(width)
    page.click("#tab-inside")
    for view in VIEWS:
        show_view(page, view)
        assert overflow(page) <= 0, view
    show_view(page, "attention")
    tokens(page, ".strip").nth(4).hover()
    wait_for_count(page.locator(".strip .later"), 20)
    shares = page.locator(".strip [role=option]:not(.later) small").all_inner_texts()
    assert sum(float(share.rstrip("%") or 0) for share in shares) == pytest.approx(100, abs=5)
    page.locator(".map").nth(2).click()
    assert page.locator(".strip [role=option]:not(.later) small").all_inner_texts() != shares


@pytest.mark.slow
def test_parts_of_characters_are_joined_and_white_space_is_seen(open_page):
    page = open_page()
    page.select_option("#model", "bpe")
    page.click("#tab-inside")
    page.fill("#inside-text", "é 😀\n<img src=x>")
    page.wait_for_selector(".joined")
    assert page.locator(".whole").all_inner_texts()[-1] == "😀"
    labels = "".join(page.locator(".chip b").all_inner_texts())
    assert "f0" in labels
    assert "↵" in labels
    assert "<" in labels
    page.click("#tab-write")
    write(page, "<img src=x onerror=alert(1)><b>", length=200)
    assert page.locator("#write img, #write b").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_runs_and_two_models_are_laid_side_by_side(open_page, width):
    page = open_page(width)
    page.click("#tab-train")
    page.wait_for_selector("#curves polyline.validation")
    assert page.locator("#curves circle").count() == 4
    samples = page.inner_text("#samples")
    page.focus("#evaluation")
    page.keyboard.press("ArrowLeft")
    assert "step 20" in page.inner_text("#evaluation-step")
    assert page.inner_text("#samples") != samples
    assert overflow(page) <= 0
    page.click("#tab-compare")
    set_length(page, 30, "compare")
    page.fill("#compare-prompt", "o menino ")
    page.click("#compare-start")
    wait_for_count(tokens(page, ".pane"), 60)
    assert overflow(page) <= 0


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_the_language_is_the_browsers_until_it_is_switched(open_page, width):
    page = open_page(width, locale="pt-BR")
    assert page.get_attribute("html", "lang") == "pt-BR"
    assert page.inner_text("#tab-inside") == "Por dentro"
    assert "parâmetros" in page.inner_text("#model-facts")
    page.click("#language")
    assert page.inner_text("#tab-inside") == "Look inside"
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert page.inner_text("#tab-inside") == "Look inside"
    assert page.get_attribute("html", "lang") == "en"


@pytest.mark.slow
@pytest.mark.parametrize("locale, message", [("en-US", "03A9"), ("pt-BR", "nunca viu no treino")])
def test_a_mistake_is_said_where_it_was_made(browser, server, locale, message):
    page = browser.new_page(locale=locale)
    page.goto(server.url)
    page.fill("#prompt", "Ω")
    page.click("#start")
    page.wait_for_selector(f"#write-status:has-text('{message}')")
    assert page.locator("#start").is_enabled()
    page.close()


@pytest.mark.slow
def test_a_model_that_goes_on_training_shows_its_new_step(open_page, server):
    page = open_page()
    name = page.locator("#model option").first.get_attribute("value")
    server.engine.models[name] = replace(server.engine.models[name], step=12_345)
    page.wait_for_selector("#model-facts:has-text('step 12,345')")
    assert page.locator("#model").input_value() == name


@pytest.mark.slow
def test_the_page_asks_for_the_key(browser, make_server, workspace):
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT)
    page.goto(make_server(api_key="secret").url)
    for key in ("wrong", "secret"):
        page.wait_for_selector("#key-dialog[open]")
        with page.expect_response("**/api/info"):
            page.fill("#key", key)
            page.keyboard.press("Enter")
    page.wait_for_selector("#model option", state="attached")
    page.close()


@pytest.fixture(scope="module")
def axe_script(request):
    """The source of axe-core, which npm keeps in pytest's cache."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm, which gets axe-core, is not installed")
    folder = request.config.cache.mkdir("axe")
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        command = [npm, "install", "--prefix", str(folder), AXE]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip(f"npm could not get {AXE}")
    return script.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_serious(open_page, axe_script, width, scheme):
    page = open_page(width, color_scheme=scheme, bypass_csp=True)
    page.evaluate(axe_script)
    write(page)
    tokens(page).nth(3).click()
    found = {"write": serious(page)}
    page.click("#tab-inside")
    for view in VIEWS:
        show_view(page, view)
        found[view] = serious(page)
    page.click("#tab-train")
    page.wait_for_selector("#curves polyline")
    found["train"] = serious(page)
    page.click("#tab-compare")
    found["compare"] = serious(page)
    assert not any(found.values()), found


def serious(page):
    """What axe-core finds that is serious or critical."""
    violations = page.evaluate("axe.run().then(results => results.violations)")
    return [
        (each["id"], [node["html"] for node in each["nodes"]])
        for each in violations
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.slow
def test_the_screenshot_is_taken(browser, server, tool, tmp_path):
    tool["take"](browser, server.url, "pt-BR", tmp_path / "serve.png", prompt="o menino ")
    assert (tmp_path / "serve.png").stat().st_size > 20_000
