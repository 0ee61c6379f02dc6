"""Services from entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from tests.vsync.support import ALONE
from vsync import plugins
from vsync.errors import ConfigError


class Service:
    def __init__(self, name: str, tag: int) -> None:
        self.name = name
        self.tag = tag


def make_good(config: Any) -> Service:
    return Service("good", 5)


def make_broken(config: Any) -> Service:
    raise OSError("no library")


def make_critical(config: Any) -> Service:
    raise ConfigError("[critical] speed: 'ludicrous' is not one of slow, fast")


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    points = [EntryPoint(n, f"{__name__}:{n}", plugins.ENTRY_POINT_GROUP) for n in names]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    monkeypatch.setattr(EntryPoint, "load", lambda self: globals()[self.name])


def test_installed_services_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "make_good", "make_good")  # found twice, made once
    assert [s.name for s in plugins.load_services(ALONE)] == ["good"]


def test_a_broken_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "make_good", "make_broken")
    with pytest.raises(ConfigError, match=r"'make_broken' .* cannot be loaded: .*no library"):
        plugins.load_services(ALONE)


def test_what_one_says_of_its_section_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "make_good", "make_critical")
    assert plugins.service_names() == ["make_critical", "make_good"]
    with pytest.raises(ConfigError, match=r"^\[critical\] speed: 'ludicrous' is not one of slow, fast$"):
        plugins.load_services(ALONE)


@pytest.mark.parametrize(
    ("services", "says"),
    [
        ([("a", 5), ("a", 6)], "two services are named 'a'"),
        ([("a", 5), ("b", 5)], "'a' and 'b' both have tag 5"),
        ([("a", 0)], "tags are 1..255"),
    ],
)
def test_names_and_tags_are_unique(services: list[tuple[str, int]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plugins.check_services([Service(*s) for s in services])  # type: ignore[misc]
