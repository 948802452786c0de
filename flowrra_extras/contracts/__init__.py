"""The contracts of brokers and of stores of schedules, as tests for their authors.

The docstrings of `BrokerContract` and `ScheduleStoreContract` explain how to run them.
"""

if not __debug__:
    raise ImportError(
        "flowrra_extras.contracts is made of assert statements, which `python -O` leaves out: every broker would pass."
        " Run it without -O, and with PYTHONOPTIMIZE unset"
    )

from flowrra_extras.contracts.changes import CancelContract, DeleteContract, HoldContract
from flowrra_extras.contracts.claims import ClaimContract, PushContract, SettleContract
from flowrra_extras.contracts.finding import FindContract, ResultContract, WaitContract
from flowrra_extras.contracts.leases import ActivityContract, CrashContract, OutageContract
from flowrra_extras.contracts.limits import (
    ConcurrencyContract,
    FairContract,
    LimitChangeContract,
    RateContract,
    RefusedLimitContract,
)
from flowrra_extras.contracts.parents import ConflictContract, EventContract, ParentsContract
from flowrra_extras.contracts.schedules import ScheduleStoreContract
from flowrra_extras.contracts.values import ValuesContract

__all__ = ["BrokerContract", "ScheduleStoreContract"]


class BrokerContract(
    PushContract,
    ClaimContract,
    SettleContract,
    CrashContract,
    OutageContract,
    CancelContract,
    DeleteContract,
    HoldContract,
    ParentsContract,
    ConflictContract,
    EventContract,
    RefusedLimitContract,
    ConcurrencyContract,
    RateContract,
    LimitChangeContract,
    FairContract,
    ResultContract,
    FindContract,
    WaitContract,
    ActivityContract,
    ValuesContract,
):
    """Tests that every broker must pass. Write a subclass that makes your broker:

        class TestMyBroker(BrokerContract):
            async def make_broker(self, clock):
                return MyBroker("my://localhost/test", clock=clock)

    `make_broker` returns a broker that is not open yet, on an empty store. Some tests call it several
    times. Leases should use `clock`. If the store has its own clock, set `lease` to a short time, and
    write a `let_pass` that advances `clock` and also waits:

            lease = 0.3

            async def let_pass(self, broker, clock, seconds):
                clock.advance(seconds)
                await asyncio.sleep(seconds)

    A broker that has no limits sets `has_limits = False`, and must refuse them; see `refuse_limits`.

    The tests are `async def` methods without fixtures. Run them with pytest and pytest-asyncio
    (`asyncio_mode = "auto"`), or with the standard library alone:
    `class TestMyBroker(BrokerContract, unittest.IsolatedAsyncioTestCase)`. For readable assertions call
    `pytest.register_assert_rewrite("flowrra_extras.contracts")` in your conftest.py.
    """
