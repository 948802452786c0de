"""The settings of the project. What Flowrra needs are the two lines that name it."""

import os
from pathlib import Path

HERE = Path(__file__).parent
SECRET_KEY = os.environ.get("SECRET_KEY", "not for production")
DEBUG = True
ROOT_URLCONF = "urls"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django_tasks",  # not with Django 6.0
    "flowrra_extras.django",
    "shop",
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
DATABASES = {
    "default": {
        # A transaction that is going to write says so when it begins, so that others wait instead of failing.
        "sqlite": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ.get("DATABASE_NAME", HERE / "db.sqlite3"),
            "OPTIONS": {"transaction_mode": "IMMEDIATE"},
        },
        "postgresql": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": os.environ.get("DATABASE_NAME", "shop"),
            "USER": os.environ.get("DATABASE_USER", "postgres"),
            "HOST": os.environ.get("DATABASE_HOST", "127.0.0.1"),
        },
    }[os.environ.get("DATABASE", "sqlite")]
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
USE_TZ = True
TASKS = {"default": {"BACKEND": "flowrra_extras.django.FlowrraBackend", "OPTIONS": {"max_retries": 3}}}
