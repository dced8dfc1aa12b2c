"""The chat page as a user handles it; not a test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

WAIT_S = 60


class ChatPage:
    """Over a Selenium driver; elements are found again each time, since the page replaces them."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get_log("browser")
        self.driver.get(url)
        self.wait(lambda: self.text("#connection") != "Connecting…")

    def resize(self, width: int, height: int, *, scheme: str = "light") -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def wait(self, holds: Callable[[], object]) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, WAIT_S, poll_frequency=0.02).until(lambda driver: holds())

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def text(self, selector: str) -> str:
        """What is rendered; empty while it is hidden."""
        return str(self.find(selector).text)

    def script(self, source: str, *arguments: object) -> Any:
        return self.driver.execute_script(source, *arguments)

    def press(self, *keys: str) -> None:
        """Typed into whatever has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def press_shift_enter(self) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).key_down("\ue008").send_keys("\ue007").key_up("\ue008").perform()

    def ask(self, question: str) -> None:
        """Typed and sent by keys alone."""
        self.press(question, "\ue007")

    def questions(self) -> list[str]:
        return [one.text for one in self.find_all(".bubble")]

    def answers(self) -> list[str]:
        return [one.text for one in self.find_all(".turn .markdown")]

    def notice(self) -> str:
        """Of the last turn."""
        return str(self.find_all(".turn .notice")[-1].text)

    def is_idle(self) -> bool:
        return self.find("#send").get_attribute("aria-label") == "Send"

    def wait_for_answers(self, *expected: str) -> None:
        self.wait(lambda: self.answers() == list(expected) and self.is_idle())

    def errors(self) -> list[str]:
        """Console messages since `open`, without those about failed requests."""
        logged = (one["message"] for one in self.driver.get_log("browser"))
        return [one for one in logged if "Failed to load resource" not in one]

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(path))
