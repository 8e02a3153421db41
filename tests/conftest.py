"""What all tests share: how hypothesis searches, and the command."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The same examples every time, so that a red test stays red until it is mended; a busy machine fails nothing.
# `pytest --hypothesis-profile=search` looks for new ones.
slow_is_fine = [HealthCheck.too_slow]
settings.register_profile(
    "repeat", derandomize=True, deadline=None, max_examples=60, suppress_health_check=slow_is_fine
)
settings.register_profile("search", deadline=None, max_examples=2000, suppress_health_check=slow_is_fine)
settings.load_profile("repeat")


@pytest.fixture
def moeplan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command in this process: (exit status, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from moeplan import cli as command

        monkeypatch.setattr("sys.argv", ["moeplan", *map(str, arguments)])
        status = 0
        try:
            command.main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        told = capsys.readouterr()
        return status, told.out, told.err

    return run
