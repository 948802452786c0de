"""The settings of the project in which Django's test runner tests the backend; see tests/django/test_backend.py."""

import os

import django

SECRET_KEY = "of the tests"  # noqa: S105
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.django.project.urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    *([] if django.VERSION >= (6, 0) else ["django_tasks"]),
    "flowrra_extras.django",
    "tests.django.project",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
# The server's URL is that of the other tests, taken apart by them.
NAME = os.environ["DATABASE_NAME"]
SQLITE = {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": NAME,
    "TEST": {"NAME": NAME},
    "OPTIONS": {"transaction_mode": "IMMEDIATE"},
}
POSTGRESQL = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": NAME,
    "TEST": {"NAME": NAME},
    "USER": os.environ.get("DATABASE_USER"),
    "PASSWORD": os.environ.get("DATABASE_PASSWORD"),
    "HOST": os.environ.get("DATABASE_HOST"),
    "PORT": os.environ.get("DATABASE_PORT"),
}
DATABASES = {"default": SQLITE if os.environ["DATABASE"] == "sqlite" else POSTGRESQL}
FOLDER = os.environ["FOLDER"]
FLOWRRA = {"EXECUTOR_IO_WORKERS": 1}
BACKEND = "flowrra_extras.django.FlowrraBackend"
TASKS = {"default": {"BACKEND": BACKEND, "QUEUES": ["default", "mail"], "OPTIONS": {"retry_delay": 0.01}}}
