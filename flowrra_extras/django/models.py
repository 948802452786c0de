"""The model of Django's permissions `flowrra.view_job` and `flowrra.change_job`. It has no table."""

from django.db import models


class Job(models.Model):
    """The entry for jobs in the admin, which opens the dashboard."""

    class Meta:
        managed = False
        default_permissions = ("view", "change")
        verbose_name = "job"
