"""Flowrra as the backend of Django's tasks: `pip install flowrra[django]`.

    INSTALLED_APPS += ["flowrra_extras.django"]
    TASKS = {"default": {"BACKEND": "flowrra_extras.django.FlowrraBackend"}}

The jobs are in the database `DATABASES["default"]`, and `enqueue` is part of the current transaction.
`manage.py migrate` creates the tables, `manage.py flowrra_worker` runs the jobs, and the admin shows them.
"""

from flowrra_extras.django.backend import FlowrraBackend, FlowrraTask, get_app

__all__ = ["FlowrraBackend", "FlowrraTask", "get_app"]
