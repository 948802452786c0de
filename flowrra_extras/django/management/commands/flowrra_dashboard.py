"""`manage.py flowrra_dashboard`: serve the dashboard of a backend of TASKS."""

from flowrra_extras.django.management.commands import PassedOn


class Command(PassedOn):
    """Takes the options of `flowrra dashboard`, such as --port."""

    help = "Serve the dashboard of Django's tasks as a separate process. The admin contains it too."
    command = "dashboard"
