"""The dashboard without any page: an app goes in, the dictionaries of `shapes` come out."""

from __future__ import annotations

from flowrra_extras.dashboard.acting import Acting
from flowrra_extras.dashboard.planning import Planning


class Service(Acting, Planning):
    """All that the dashboard shows and does. The only part that talks to the app, its broker and its schedulers."""
