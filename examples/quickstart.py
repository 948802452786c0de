"""A task, a job and its result in one process.

Prints:
    Result: {'status': 'sent', 'to': 'user@example.com'}
"""

import asyncio

from flowrra import Flowrra

app = Flowrra.from_urls()


@app.task(max_retries=5, retry_delay=2.0)
async def send_email(to: str, subject: str) -> dict[str, str]:
    return {"status": "sent", "to": to}


async def main() -> None:
    async with app:
        task_id = await app.submit(send_email, "user@example.com", "Hello")
        result = await app.wait_for_result(task_id, timeout=10.0)
        print(f"Result: {result.result}")


asyncio.run(main())
