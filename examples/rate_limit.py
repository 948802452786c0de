"""A limit: an API that allows 100 requests a minute, with bursts of 20, whatever the number of workers.

Prints:
    20 calls began immediately
    3 calls waited for their turn, the last one ... s
    It waits for the limit api (100/m), which allows the next in 0... s.
"""

import asyncio
import time

from flowrra import Flowrra

app = Flowrra.from_urls()
app.limit("api", rate="100/m", burst=20)


@app.task(limit="api")
async def call(number: int) -> float:
    return time.monotonic()


async def main() -> None:
    async with app:
        ids = await app.submit_many(call, [(number,) for number in range(23)])
        starts = [(await app.wait_for_result(task_id, timeout=30)).result for task_id in ids]
        waited = [start - starts[0] for start in starts if start - starts[0] >= 0.5]
        print(len(starts) - len(waited), "calls began immediately")
        print(f"{len(waited)} calls waited for their turn, the last one {waited[-1]:.1f} s")
        print(await app.explain(await app.submit(call, 99)))


if __name__ == "__main__":
    asyncio.run(main())
