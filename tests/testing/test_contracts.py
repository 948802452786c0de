"""What `flowrra_extras.contracts` gives to those who write a broker: tests for any runner, which find faults."""

import subprocess
import sys
import unittest

from flowrra import Broker, MemoryBroker
from flowrra_extras.contracts import BrokerContract
from flowrra_extras.testing import ManualClock


def test_without_assertions_there_is_no_contract() -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-c", "import flowrra_extras.contracts"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ImportError: flowrra_extras.contracts is made of assert statements" in done.stderr


def test_the_contract_runs_without_any_plugin() -> None:
    """As its docstring says: under the standard library's runner."""

    class TestTheirs(BrokerContract, unittest.IsolatedAsyncioTestCase):
        async def make_broker(self, clock: ManualClock) -> Broker:
            return MemoryBroker(clock=clock)

    names = ("test_success", "test_a_push_wakes_who_wants_jobs")
    result = unittest.TestSuite(map(TestTheirs, names)).run(unittest.TestResult())
    assert (result.testsRun, result.errors, result.failures) == (2, [], [])


def test_the_contract_finds_a_broken_broker() -> None:
    class Forgetful(MemoryBroker):
        async def requeue(self, task_ids: object, *, now: float, by: str | None = None) -> list[bool]:
            return [True]

    class TestTheirs(BrokerContract, unittest.IsolatedAsyncioTestCase):
        async def make_broker(self, clock: ManualClock) -> Broker:
            return Forgetful(clock=clock)

    result = unittest.TestSuite([TestTheirs("test_requeue_makes_ready")]).run(unittest.TestResult())
    assert len(result.failures) == 1
