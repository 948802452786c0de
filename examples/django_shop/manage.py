"""Orders and their receipts: a Django project whose tasks run in Flowrra.

Needs `pip install 'flowrra[django]'`, and with DATABASE=postgresql `flowrra[postgresql]` and `psycopg[binary]`. Then:

    python manage.py migrate
    python manage.py createsuperuser
    python manage.py flowrra_worker &
    python manage.py runserver          # POST /order, and http://127.0.0.1:8000/admin/flowrra/job/ shows the jobs
"""

import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
execute_from_command_line(sys.argv)
