"""Tools for tests: an app whose jobs stay in memory and run when the test says so, and a clock that the test moves.

::

    async with isolated(app) as test:  # or `with`, and test.sync.drain(), in a test that is no coroutine
        await register_user("ada@example.com")
        test.assert_enqueued(send_welcome, "ada@example.com")
        await test.drain()

`drain` and `fire_due` do the same for an app that runs on its configured store. The fixture `flowrra_app` of the
pytest plugin is an isolated app.
"""

from flowrra_extras.testing.clock import ManualClock
from flowrra_extras.testing.context import StandInJob, job_context
from flowrra_extras.testing.drain import drain, fire_due
from flowrra_extras.testing.isolated import EnqueuedJob, IsolatedApp, SyncIsolatedApp, isolated

__all__ = [
    "EnqueuedJob",
    "IsolatedApp",
    "ManualClock",
    "StandInJob",
    "SyncIsolatedApp",
    "drain",
    "fire_due",
    "isolated",
    "job_context",
]
