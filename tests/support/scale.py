"""How many random examples a run tries: HYPOTHESIS_PROFILE is dev, tenth, full or long."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SCALES = {"dev": 0.05, "tenth": 0.1, "full": 1.0, "long": 10.0}


def profile() -> str:
    """Return the name of the profile in force; `dev` for a bare pytest."""
    return os.environ.get("HYPOTHESIS_PROFILE", "dev")


def examples(full: int) -> int:
    """Return a number of examples, given the one of a full run."""
    return max(1, int(full * SCALES[profile()]))


def pure_examples(full: int) -> int:
    """Return the same for what touches no database.

    Its examples are those of the run on SQLite once more: beside PostgreSQL a tenth will do.
    """
    repeated = os.environ.get("TEST_DATABASE") == "postgresql" and profile() in ("full", "long")
    return examples(full // 10 if repeated else full)


def register() -> None:
    """Tell Hypothesis: databases are slow, and machines are noisy, so there is no deadline."""
    settings.register_profile(
        "conversations",
        # What guards a merge must answer alike every time; long runs go looking for news.
        derandomize=profile() in ("tenth", "full"),
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
            HealthCheck.function_scoped_fixture,
        ],
    )
    settings.load_profile("conversations")
