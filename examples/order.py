"""An order in steps: charge, ship, wait for the delivery, send a mail. It goes on where it was interrupted.

The services are stand-ins that keep a list in a SQLite file. The one for payments takes each key once, as such
services do: a step that was interrupted runs again, and must not charge again.

Prints:
    charged, shipped, mailed: ['charge 42', 'ship 42', 'mail 42']
    attempts: 3
"""

import asyncio
import contextlib
import os
import sqlite3

from flowrra import Flowrra, current_job

app = Flowrra.from_urls(os.environ.get("FLOWRRA_BROKER"))
SERVICES = os.environ.get("ORDER_SERVICES", "services.db")


def call_service(what: str, key: str) -> None:
    with contextlib.closing(sqlite3.connect(SERVICES, timeout=30)) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS called (key TEXT PRIMARY KEY, what TEXT)")
        db.execute("INSERT OR IGNORE INTO called VALUES (?, ?)", (key, what))


def charge(number: int) -> str:
    call_service(f"charge {number}", key := current_job().step_key)
    return key


def ship(number: int) -> str:
    call_service(f"ship {number}", current_job().step_key)
    return f"parcel {number}"


def mail(number: int, parcel: str) -> None:
    call_service(f"mail {number}", current_job().step_key)


@app.task(retry_delay=0.1)
async def order(number: int) -> str:
    job = current_job()
    await job.step("charge", charge, number)
    parcel = await job.with_retries(3, retry_delay=0.1).step("ship", ship, number)
    await job.wait_event(f"delivered:{parcel}")
    if job.failures == 0:
        raise ConnectionError("the mail server does not answer")
    await job.step("mail", mail, number, parcel)
    return parcel


async def main() -> None:
    async with app:
        task_id = await app.submit(order, 42)
        await asyncio.sleep(0.2)  # the parcel is on its way; the job waits without a slot
        await app.emit("delivered:parcel 42")
        result = await app.wait_for_result(task_id, timeout=10)
    with contextlib.closing(sqlite3.connect(SERVICES)) as db:
        called = [what for (what,) in db.execute("SELECT what FROM called ORDER BY rowid")]
    print(f"charged, shipped, mailed: {called}")
    print(f"attempts: {result.attempts}")


if __name__ == "__main__":
    asyncio.run(main())
