"""A limit by key: one import of each customer at a time, and imports of several customers side by side.

Prints:
    up to 3 imports at once, and never 2 of one customer
    customer 1 in the order of submission: ['a.csv', 'b.csv', 'c.csv']
"""

import asyncio
import collections
from dataclasses import dataclass

from flowrra import Flowrra

app = Flowrra.from_urls()


@dataclass
class Upload:
    customer_id: int
    file: str


running: collections.Counter[int] = collections.Counter()
most: collections.Counter[int] = collections.Counter()
order: list[str] = []
at_once = 0


@app.task(concurrency=1, key=lambda upload: upload.customer_id)
async def run_import(upload: Upload) -> None:
    global at_once
    running[upload.customer_id] += 1
    most[upload.customer_id] = max(most[upload.customer_id], running[upload.customer_id])
    at_once = max(at_once, running.total())
    if upload.customer_id == 1:
        order.append(upload.file)
    await asyncio.sleep(0.05)
    running[upload.customer_id] -= 1


async def main() -> None:
    async with app:
        uploads = [Upload(customer, file) for file in ("a.csv", "b.csv", "c.csv") for customer in (1, 2, 3)]
        ids = await app.submit_many(run_import, [(upload,) for upload in uploads])
        for task_id in ids:
            await app.wait_for_result(task_id, timeout=30)
        print(f"up to {at_once} imports at once, and never {max(most.values()) + 1} of one customer")
        print("customer 1 in the order of submission:", order)


if __name__ == "__main__":
    asyncio.run(main())
