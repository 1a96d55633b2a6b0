"""Settings of every test."""

from __future__ import annotations

from importlib.util import find_spec

# The kernels' tests also run where pytest is all there is.
if find_spec("hypothesis") is not None:
    from hypothesis import settings

    # No test depends on the clock: a busy machine must not fail one.
    settings.register_profile("no_clock", deadline=None)
    settings.load_profile("no_clock")
