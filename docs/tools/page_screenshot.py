"""Draw serve.png in docs/images and docs/images/pt: the page of serve.py, in both languages.

It needs a Chromium, and the package playwright that drives it.
"""

import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "docs" / "data" / "out-gptlab-10000"
IMAGES = {"en-US": ROOT / "docs" / "images", "pt-BR": ROOT / "docs" / "images" / "pt"}
SIZE = {"width": 1280, "height": 800}
PROMPT = "A moça abriu a j"
HELD_TOKEN = 12


def find_chromium():
    """The path of a Chromium or Chrome; None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def running_browser():
    """A Chromium. The sandbox of its own needs rights that a container seldom has."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox"], timeout=120_000
        )
        yield browser
        browser.close()


def take(browser, url, locale, path, prompt=PROMPT):
    """Write a text, hold one of its tokens, and save what the page then looks like."""
    page = browser.new_page(viewport=SIZE, locale=locale, color_scheme="light")
    page.set_default_timeout(120_000)
    page.goto(url)
    page.fill("#prompt", prompt)
    page.click("#start")
    page.wait_for_selector("#copy:enabled")
    page.locator("#text [role=option]").nth(HELD_TOKEN).click()
    page.wait_for_selector("#likeliest button")
    page.mouse.move(0, 0)
    page.screenshot(path=path)
    page.close()


def main():
    command = [sys.executable, ROOT / "serve.py", f"--out_dir={RUN}", "--port=0", "--device=cpu"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().split()[0]
        with running_browser() as browser:
            for locale, folder in IMAGES.items():
                take(browser, url, locale, folder / "serve.png")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
