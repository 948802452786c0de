"""Jobs and the web UI in a Django program: python django_app.py, then open http://127.0.0.1:8000/flowrra/

Needs `pip install django 'flowrra[dashboard]'`. By default the web UI answers requests from this host only. In
production, protect it like any other view:

    urls = get_urls(jobs, decorator=login_required, auth=lambda request: "full" if request.user.is_staff else "read")
"""

import sys
import time

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, JsonResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt

from flowrra import Flowrra, current_job
from flowrra_extras.dashboard.django import get_urls

jobs = Flowrra.from_urls("sqlite:///jobs.db")


@jobs.task(max_retries=2)
def send_report(recipient: str, pages: int = 3) -> str:
    """Write a report and send it."""
    for page in range(pages):
        current_job().progress(page, pages, f"page {page + 1}")
        time.sleep(0.2)
    return f"sent {pages} pages to {recipient}"


@csrf_exempt
def order_report(request: HttpRequest, recipient: str) -> JsonResponse:
    return JsonResponse({"job": jobs.sync.submit(send_report, recipient)})


urlpatterns = [
    path("reports/<recipient>", order_report),
    path("flowrra/", include(get_urls(jobs))),
]
settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware"],
    ROOT_URLCONF=__name__,
)

if __name__ == "__main__":
    jobs.sync.run(jobs.start())  # a worker in this process; in production: python -m flowrra worker django_app:jobs
    try:
        execute_from_command_line(["django", "runserver", "--noreload", *(sys.argv[1:] or ["8000"])])
    finally:
        jobs.sync.run(jobs.stop())
