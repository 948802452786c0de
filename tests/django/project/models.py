from __future__ import annotations

from django.db import models


class Order(models.Model):
    """Something that a job and a row are both about."""

    item: models.CharField[str, str] = models.CharField(max_length=100)
