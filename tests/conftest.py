"""What all tests share: how hypothesis searches."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# The same examples every time, so that a red test stays red until it is mended; a busy machine fails nothing.
# `pytest --hypothesis-profile=search` looks for new ones.
slow_is_fine = [HealthCheck.too_slow]
settings.register_profile(
    "repeat", derandomize=True, deadline=None, max_examples=60, suppress_health_check=slow_is_fine
)
settings.register_profile("search", deadline=None, max_examples=2000, suppress_health_check=slow_is_fine)
settings.load_profile("repeat")
