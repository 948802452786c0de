"""The Django app: it imports the tasks of the project, and `migrate` creates the tables of the jobs."""

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate
from django.utils.module_loading import autodiscover_modules

from flowrra_extras.django.backend import FlowrraBackend
from flowrra_extras.django.interface import task_backends


class FlowrraConfig(AppConfig):
    """The configuration of `flowrra_extras.django` in INSTALLED_APPS."""

    name = "flowrra_extras.django"
    label = "flowrra"
    default_auto_field = "django.db.models.BigAutoField"
    verbose_name = "Flowrra"

    def ready(self) -> None:
        """Import the module `tasks` of each app, so that every process knows the tasks."""
        autodiscover_modules("tasks")
        post_migrate.connect(_make_tables, sender=self)


def _make_tables(using: str, **_: Any) -> None:
    for backend in task_backends.all():
        if isinstance(backend, FlowrraBackend):
            backend.make_tables(using)
