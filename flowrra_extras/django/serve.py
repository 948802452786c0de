"""The apps of a Django project, for the command line: `flowrra worker flowrra_extras.django.serve:default`.

The name after the colon is the alias of a backend in TASKS. DJANGO_SETTINGS_MODULE names the settings of the project.
"""

import django
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

from flowrra import ConfigError, Flowrra
from flowrra_extras.django.backend import get_app
from flowrra_extras.django.interface import task_backends

try:
    if not apps.ready:
        django.setup()
except ImproperlyConfigured as error:
    raise ConfigError(f"set the settings, as in `export DJANGO_SETTINGS_MODULE=mysite.settings`: {error}") from error


def __getattr__(name: str) -> Flowrra:
    if name not in task_backends:
        raise AttributeError(f"TASKS has no backend {name!r}")
    return get_app(name)
