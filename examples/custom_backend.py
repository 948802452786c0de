"""A custom backend: it keeps each result as a file in a folder.

A backend needs `record` and `get`. The jobs stay in the broker.

Prints:
    42
    kept in 1 file(s)
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowrra import Backend, Config, Flowrra, TaskResult, decode_result, encode_result


class FolderBackend(Backend):
    """Keeps each result as a JSON file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def open(self) -> None:
        self.folder.mkdir(exist_ok=True)

    async def record(self, results: Sequence[TaskResult[Any]]) -> None:
        # File access is slow, so it must not run on the event loop.
        await asyncio.to_thread(self._write, results)

    async def get(self, task_ids: Sequence[str]) -> list[TaskResult[Any] | None]:
        return await asyncio.to_thread(lambda: [self._read(task_id) for task_id in task_ids])

    def _write(self, results: Sequence[TaskResult[Any]]) -> None:
        for result in results:
            unfinished = self.folder / f"{result.task_id}.part"
            unfinished.write_text(encode_result(result))
            unfinished.rename(self.folder / f"{result.task_id}.json")  # a reader never sees half a file

    def _read(self, task_id: str) -> TaskResult[Any] | None:
        try:
            return decode_result((self.folder / f"{task_id}.json").read_text())
        except FileNotFoundError:
            return None


backend = FolderBackend(Path("results"))
app = Flowrra(Config(), backend=backend)


@app.task
async def double(number: int) -> int:
    return 2 * number


async def main() -> None:
    async with app:
        task_id = await app.submit(double, 21)
        print((await app.wait_for_result(task_id, timeout=10)).result)
    print(f"kept in {len(list(backend.folder.glob('*.json')))} file(s)")


asyncio.run(main())
