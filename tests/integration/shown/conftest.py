"""A browser for the tests of pages."""

from __future__ import annotations

import pytest

from tests.browser import Browser, find_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = find_browser()
    assert executable
    browser = Browser(executable, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()
