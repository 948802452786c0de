from __future__ import annotations

from django.db import models


class Order(models.Model):
    """Something that somebody wants."""

    item: models.CharField[str, str] = models.CharField(max_length=100)
    receipt: models.CharField[str, str] = models.CharField(max_length=200, default="")
