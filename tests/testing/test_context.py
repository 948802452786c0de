"""`job_context`: a task that looks at its job, called directly."""

import pytest

from flowrra import Flowrra, FlowrraError, Progress, Retry, current_job
from flowrra_extras.testing import job_context

app = Flowrra()


@app.task
async def fetch(url: str) -> str:
    job = current_job()
    job.progress(1, 2, job.id)
    if job.attempt < 3:
        raise Retry
    return f"{url} {job.failures} {job.queue} {job.state}"


async def test_a_task_finds_the_attempt_that_it_is_given() -> None:
    with job_context(attempt=3, id="a", queue="web", state="pool") as job:
        assert await fetch("x") == "x 2 web pool"
        with current_job().waiting():
            pass
    assert job.reported == [Progress(1, 2, "a")]
    with job_context() as outer:
        with job_context(attempt=5, failures=0):
            assert current_job().failures == 0
        assert current_job() is outer
        with pytest.raises(Retry):
            await fetch("x")
    with pytest.raises(FlowrraError, match="outside"):
        current_job()
