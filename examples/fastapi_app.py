"""Jobs and the web UI in a FastAPI program: python fastapi_app.py, then open http://127.0.0.1:8000/flowrra/

Needs `pip install fastapi uvicorn 'flowrra[dashboard]'`. By default the web UI answers requests from this host only.
In production, protect it like any other route:

    web.include_router(
        create_router(jobs, auth=lambda request: "full"), prefix="/flowrra", dependencies=[Depends(check_operator)]
    )
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from flowrra import Flowrra, current_job
from flowrra_extras.dashboard.fastapi import create_router

jobs = Flowrra.from_urls("sqlite:///jobs.db")


@jobs.task(max_retries=2)
async def send_report(recipient: str, pages: int = 3) -> str:
    """Write a report and send it."""
    for page in range(pages):
        current_job().progress(page, pages, f"page {page + 1}")
        await asyncio.sleep(0.2)
    return f"sent {pages} pages to {recipient}"


@asynccontextmanager
async def lifespan(program: FastAPI) -> AsyncIterator[None]:
    async with jobs:  # a worker in this process; with jobs.client(), only `python -m flowrra worker` runs jobs
        yield


web = FastAPI(lifespan=lifespan)
web.include_router(create_router(jobs), prefix="/flowrra")


@web.post("/reports/{recipient}")
async def order_report(recipient: str) -> dict[str, str]:
    return {"job": await jobs.submit(send_report, recipient)}


if __name__ == "__main__":
    uvicorn.run(web, port=int(sys.argv[1]) if sys.argv[1:] else 8000, proxy_headers=False)
