"""Jobs and the web UI in a Quart program: python quart_app.py, then open http://127.0.0.1:8000/flowrra/

Needs `pip install quart 'flowrra[dashboard]'`. By default the web UI answers requests from this host only. In
production, protect its blueprint like any other:

    dashboard = create_blueprint(jobs, auth=lambda request: "full")
    dashboard.before_request(check_operator)
"""

import asyncio
import sys
from collections.abc import AsyncGenerator

from quart import Quart

from flowrra import Flowrra, current_job
from flowrra_extras.dashboard.quart import create_blueprint

jobs = Flowrra.from_urls("sqlite:///jobs.db")


@jobs.task(max_retries=2)
async def send_report(recipient: str, pages: int = 3) -> str:
    """Write a report and send it."""
    for page in range(pages):
        current_job().progress(page, pages, f"page {page + 1}")
        await asyncio.sleep(0.2)
    return f"sent {pages} pages to {recipient}"


web = Quart(__name__)
web.register_blueprint(create_blueprint(jobs), url_prefix="/flowrra")


@web.while_serving
async def work() -> AsyncGenerator[None, None]:
    async with jobs:  # a worker in this process; with jobs.client(), only `python -m flowrra worker` runs jobs
        yield


@web.post("/reports/<recipient>")
async def order_report(recipient: str) -> dict[str, str]:
    return {"job": await jobs.submit(send_report, recipient)}


if __name__ == "__main__":
    web.run(port=int(sys.argv[1]) if sys.argv[1:] else 8000)
