"""What to test with: a clock that a test moves, `drain(app)`, and the suites that brokers and stores pass.

    clock = ManualClock()
    app = Flowrra(clock=clock)
    async with app:
        task_id = await app.submit(send_email, "user@example.com", "Hello")
        await drain(app)  # retries too: the clock is put forward to each of them
        assert (await app.get_job(task_id)).status is TaskStatus.SUCCESS

`BrokerContract` is for those who write a broker, `ScheduleStoreContract` for a store of schedules; their
docstrings say how.
"""

from flowrra_extras.testing.jobs import ClaimContract, PushContract, SettleContract
from flowrra_extras.testing.leases import LeaseContract
from flowrra_extras.testing.lives import CancelContract, CrashContract, ParentsContract
from flowrra_extras.testing.looking import LookingContract, WaitingContract
from flowrra_extras.testing.moving import MovingContract
from flowrra_extras.testing.schedules import ScheduleStoreContract
from flowrra_extras.testing.tending import ActivityContract, HandContract, SearchContract
from flowrra_extras.testing.tools import ManualClock, drain, fire_due
from flowrra_extras.testing.values import ValuesContract

__all__ = ["BrokerContract", "ManualClock", "ScheduleStoreContract", "drain", "fire_due"]


class BrokerContract(
    PushContract,
    ClaimContract,
    SettleContract,
    CrashContract,
    LeaseContract,
    CancelContract,
    ParentsContract,
    LookingContract,
    WaitingContract,
    MovingContract,
    SearchContract,
    HandContract,
    ActivityContract,
    ValuesContract,
):
    """What every broker does, as tests. Subclass it and say how to make yours:

        class TestMyBroker(BrokerContract):
            async def make_broker(self, clock):
                return MyBroker("my://localhost/test", clock=clock)

    `make_broker` returns a broker that is not open yet, on a store with nothing in it; some tests ask
    for several, one after the other. Leases should run on `clock`; where the store has a clock of its
    own, set `lease` to something short and let `let_pass` wait so long, beside advancing `clock`:

            lease = 0.3

            async def let_pass(self, broker, clock, seconds):
                clock.advance(seconds)
                await asyncio.sleep(seconds)

    The tests are `async def` methods without fixtures. Whatever runs such methods will do: pytest with
    pytest-asyncio (`asyncio_mode = "auto"`), or, with nothing installed, the standard library's runner:
    `class TestMyBroker(BrokerContract, unittest.IsolatedAsyncioTestCase)`. For readable assertions call
    `pytest.register_assert_rewrite("flowrra_extras.testing")` in your conftest.py.
    """
