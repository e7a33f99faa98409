"""Settings of all tests: no hub, and no limit on how long a generated example may take."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The machine may be busy: time is never a reason to fail.
settings.register_profile("dataflex", deadline=None)
settings.load_profile("dataflex")
