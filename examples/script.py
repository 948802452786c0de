"""A script without `async`: it submits jobs to a SQLite file and waits for a worker to run them.

Usually you start the worker separately, with `python -m flowrra worker script:app`. This script starts one itself, so
that the example is one file.

Prints:
    640 x 480 has 307200 pixels
    800 x 600 has 480000 pixels
"""

import subprocess
import sys

from flowrra import Flowrra

app = Flowrra.from_urls("sqlite:///script.db")


@app.task
def pixels(width: int, height: int) -> int:
    return width * height


def main() -> None:
    sizes = [(640, 480), (800, 600)]
    task_ids = app.sync.submit_many(pixels, sizes)  # when this returns, the jobs are on disk
    worker = subprocess.Popen([sys.executable, "-m", "flowrra", "worker", "script:app", "--log-level", "warning"])
    try:
        for (width, height), task_id in zip(sizes, task_ids, strict=True):
            result = app.sync.wait_for_result(task_id, timeout=30)
            print(f"{width} x {height} has {result.result} pixels")
    finally:
        worker.terminate()  # it finishes its running jobs
        worker.wait()
        app.sync.close()


if __name__ == "__main__":  # the worker imports this file too
    main()
