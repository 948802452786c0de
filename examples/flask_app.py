"""Jobs and the web UI in a Flask program: python flask_app.py, then open http://127.0.0.1:8000/flowrra/

Needs `pip install flask 'flowrra[dashboard]'`. By default the web UI answers requests from this host only. In
production, protect its blueprint like any other:

    dashboard = create_blueprint(jobs, auth=lambda request: "full")
    dashboard.before_request(check_operator)
"""

import sys
import time

from flask import Flask

from flowrra import Flowrra, current_job
from flowrra_extras.dashboard.flask import create_blueprint

jobs = Flowrra.from_urls("sqlite:///jobs.db")


@jobs.task(max_retries=2)
def send_report(recipient: str, pages: int = 3) -> str:
    """Write a report and send it."""
    for page in range(pages):
        current_job().progress(page, pages, f"page {page + 1}")
        time.sleep(0.2)
    return f"sent {pages} pages to {recipient}"


web = Flask(__name__)
web.register_blueprint(create_blueprint(jobs), url_prefix="/flowrra")


@web.post("/reports/<recipient>")
def order_report(recipient: str) -> dict[str, str]:
    return {"job": jobs.sync.submit(send_report, recipient)}


if __name__ == "__main__":
    jobs.sync.run(jobs.start())  # a worker in this process; in production: python -m flowrra worker flask_app:jobs
    try:
        web.run(port=int(sys.argv[1]) if sys.argv[1:] else 8000)
    finally:
        jobs.sync.run(jobs.stop())
