"""What a person sees of examples/web/index.html, in a headless browser.

    web_page.py --command 'server -model {model} -addr {addr} -config {config} -web examples/web/index.html' [--shots DIRECTORY]

The command starts a server that has the page at /. Needs Chromium, its driver, and the packages of web_client.txt and
openai_client.txt. With --shots, pictures of the page are left there.
"""

import argparse
import shutil
import sys
import unittest

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import openai_server
from openai_server import ENDLESS, Server

# Keeps every text that an answer shows while it is made.
WATCH = """
window.seen = [];
new MutationObserver(() => {
  const text = document.querySelector(".assistant.busy .text")?.textContent;
  if (text && text !== window.seen.at(-1)) window.seen.push(text);
}).observe(document.getElementById("log"), { subtree: true, childList: true, characterData: true });
"""
shots = None
browser = None


def start_browser():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=900,700"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


class Page(unittest.TestCase):
    def open(self, delay_us=20000, **config):
        self.server = Server(f"mock:words,delay_us={delay_us}", {"served_model_name": "fox-1", **config})
        self.addCleanup(self.server.close)
        browser.get(f"http://127.0.0.1:{self.server.port}/")
        self.wait(lambda: self.at("model").text == "fox-1")
        browser.get_log("browser")

    def at(self, name):
        return browser.find_element(By.ID, name)

    def all(self, selector):
        return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]

    def wait(self, until, seconds=20):
        return WebDriverWait(browser, seconds, 0.02).until(lambda _: until())

    def shot(self, name):
        if shots:
            browser.save_screenshot(f"{shots}/{name}.png")

    def say(self, text):
        self.at("prompt").send_keys(text, Keys.ENTER)

    def answered(self, count):
        self.wait(lambda: self.at("send").is_displayed() and len(self.all(".assistant .text")) == count)
        return self.all(".assistant .text")

    def set(self, **settings):
        if not browser.find_element(By.ID, "more").get_attribute("open"):
            browser.find_element(By.CSS_SELECTOR, "summary").click()
        for name, value in settings.items():
            self.at(name).clear()
            self.at(name).send_keys(value)

    def prompt_tokens(self):
        return self.server.gauge("prompt_tokens_total")

    def clean(self):
        """The page broke no rule of its own and no script failed."""
        self.assertEqual([line for line in browser.get_log("browser") if line["level"] == "SEVERE"], [])

    def test_an_answer_streams(self):
        self.open()
        self.set(max_tokens="60")
        browser.execute_script(WATCH)
        self.say("Tell me of a <b>fox</b> & 🦊")
        text = self.answered(1)[0]
        seen = browser.execute_script("return window.seen")
        self.assertGreater(len(seen), 5, "the text comes at once")
        self.assertTrue(all(text.startswith(part.strip()) for part in seen), (text, seen))
        # The user's text is text.
        self.assertEqual(self.all(".user .text"), ["Tell me of a <b>fox</b> & 🦊"])
        self.assertRegex(self.all(".assistant .note")[0], r"^60 tokens in \d+\.\d s\. Cut at max tokens\.$")
        self.assertEqual(browser.switch_to.active_element.get_attribute("id"), "prompt")
        self.shot("answer")
        self.clean()

    def test_an_answer_is_stopped(self):
        self.open()
        for count, stop in ((1, lambda: self.at("stop").click()), (2, lambda: self.at("prompt").send_keys(Keys.ESCAPE))):
            self.say("Never end")
            self.wait(lambda: len(self.all(".assistant .text")) == count and len(self.all(".assistant .text")[-1]) > 10)
            self.server.until("num_requests_running", 1)
            self.shot("streaming")
            stop()
            self.assertGreater(len(self.answered(count)[-1]), 10)
            self.assertEqual(self.all(".assistant .note")[-1], "Stopped.")
            self.server.until("num_requests_running", 0)
        self.assertEqual(self.all(".error"), [])
        self.clean()

    def test_a_busy_server_is_told_and_tried_again(self):
        self.open(max_num_seqs=1, max_waiting=1)
        held = []
        for gauge in ("num_requests_running", "num_requests_waiting"):
            held.append(self.server.connect())
            self.server.send(held[-1], "/v1/completions", {**ENDLESS, "stream": True})
            self.server.until(gauge, 1)
        self.set(max_tokens="5")
        self.say("Hello")
        told = self.wait(lambda: self.all("[role=alert]"))
        self.assertRegex(told[0], "^The server is busy: .+ Try again$")
        self.assertEqual((self.all(".assistant"), self.all(".user .text")), ([], ["Hello"]))
        self.shot("busy")
        for connection in held:
            connection.close()
        self.server.until("num_requests_running", 0)
        self.server.until("num_requests_waiting", 0)
        browser.find_element(By.CSS_SELECTOR, "[role=alert] button").click()
        self.assertNotEqual(self.answered(1)[0], "")
        self.assertEqual((self.all("[role=alert]"), self.all(".user .text")), ([], ["Hello"]))

    def test_other_errors_are_for_people(self):
        self.open()
        for setting, value, says in (("temperature", "-1", "temperature is a number"), ("max_tokens", "0", "whole number from 1")):
            self.set(**{setting: value})
            self.say("Hello")
            self.assertIn(says, self.wait(lambda: self.all("[role=alert]"))[0])
            self.assertEqual(browser.switch_to.active_element.get_attribute("id"), setting)
            self.set(**{setting: ""})
        # The engine's own message: longer than the model's length.
        self.set(max_tokens="5")
        browser.execute_script("document.getElementById('prompt').value = 'x'.repeat(200000)")
        self.say("")
        self.assertRegex(self.wait(lambda: [e for e in self.all("[role=alert]") if "number" not in e])[0], "(?i)tokens.* Try again$")
        self.server.close()
        self.say("Hello")
        self.wait(lambda: self.all("[role=alert]") == ["The server cannot be reached. Try again"])

    def test_the_conversation_is_kept(self):
        self.open(delay_us=1000)
        self.set(max_tokens="40")
        self.say("First")
        self.answered(1)
        first = self.prompt_tokens()
        self.say("Second")
        texts = self.answered(2)
        # What was said before goes along.
        self.assertGreater(self.prompt_tokens() - first, first + 40)
        browser.refresh()
        self.wait(lambda: self.all(".assistant .text") == texts)
        self.assertEqual(self.all(".user .text"), ["First", "Second"])
        self.assertEqual(self.at("max_tokens").get_attribute("value"), "40")
        self.at("fresh").click()
        self.assertEqual(self.all(".message"), [])
        before = self.prompt_tokens()
        self.set(system="You are a fox that says little. ")
        self.say("First")
        self.answered(1)
        self.assertGreater(self.prompt_tokens() - before, first + 20)
        self.clean()

    def test_a_new_chat_ends_the_old_answer(self):
        self.open()
        self.say("Never end")
        self.wait(lambda: self.all(".assistant .text") and self.all(".assistant .text")[0])
        self.at("fresh").click()
        self.server.until("num_requests_running", 0)
        self.set(max_tokens="5")
        self.say("Hello")
        self.assertEqual((len(self.answered(1)), self.all(".user .text")), (1, ["Hello"]))
        self.clean()

    def test_keys_alone_are_enough(self):
        self.open(delay_us=1000)
        self.assertEqual(browser.switch_to.active_element.get_attribute("id"), "prompt")
        self.at("prompt").send_keys("one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two")
        self.assertEqual(self.at("prompt").get_attribute("value"), "one\ntwo")
        # Backwards from the message are the settings; Enter opens them.
        self.at("prompt").send_keys(Keys.SHIFT, Keys.TAB, Keys.NULL)
        browser.switch_to.active_element.send_keys(Keys.ENTER)
        self.wait(lambda: self.at("system").is_displayed())
        reached = []
        for _ in range(5):
            browser.switch_to.active_element.send_keys(Keys.TAB)
            reached.append(browser.switch_to.active_element.get_attribute("id"))
        self.assertEqual(reached, ["system", "temperature", "max_tokens", "prompt", "send"])
        self.at("max_tokens").send_keys("5")
        self.at("send").send_keys(Keys.SPACE)
        self.answered(1)
        self.assertEqual(self.all(".user .text"), ["one\ntwo"])

    def test_a_phone_shows_it_whole(self):
        # A window cannot be as narrow as a phone; its screen can be.
        screen = {"width": 360, "height": 640, "deviceScaleFactor": 2, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        try:
            self.open(delay_us=1000)
            self.set(max_tokens="300")
            self.say("A" * 200)
            self.answered(1)
            self.shot("phone")
            wide, high, scrolls = browser.execute_script(
                "const e = document.documentElement; return [innerWidth, innerHeight, e.scrollWidth > innerWidth || e.scrollHeight > innerHeight]")
            self.assertEqual((wide, high, scrolls), (360, 640, False))
            for name in ("send", "prompt", "fresh", "max_tokens"):
                box = self.at(name).rect
                self.assertTrue(box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 640, (name, box))
            # The newest text is in sight.
            bottom = browser.execute_script("const s = document.getElementById('scroll'); return s.scrollHeight - s.scrollTop - s.clientHeight")
            self.assertLess(bottom, 5)
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def test_a_server_that_still_loads_says_so(self):
        self.server = Server("mock:words,load_ms=1500", {"async_load": True, "served_model_name": "fox-1"}, loaded=False)
        self.addCleanup(self.server.close)
        browser.get(f"http://127.0.0.1:{self.server.port}/")
        self.wait(lambda: "loads" in self.at("model").text)
        self.wait(lambda: self.at("model").text == "fox-1")


def main():
    global shots, browser
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", required=True, help="starts the server, with {model}, {addr} and {config} in it")
    parser.add_argument("--shots", help="where to leave pictures")
    openai_server.options, rest = parser.parse_known_args()
    shots = openai_server.options.shots
    browser = start_browser()
    try:
        return 0 if unittest.main(argv=[sys.argv[0], *rest], exit=False).result.wasSuccessful() else 1
    finally:
        browser.quit()


if __name__ == "__main__":
    sys.exit(main())
