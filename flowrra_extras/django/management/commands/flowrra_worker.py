"""`manage.py flowrra_worker`: run the jobs of a backend of TASKS."""

from flowrra_extras.django.management.commands import PassedOn


class Command(PassedOn):
    """Takes the options of `flowrra worker`, such as --processes 2 and --reload."""

    help = "Run the jobs of Django's tasks."
    command = "worker"
