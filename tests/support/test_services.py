"""What a test does without the server that it needs."""

import socket
from collections.abc import Iterator

import pytest

from tests.support import redis_server
from tests.support.services import address, require


@pytest.fixture
def port() -> Iterator[int]:
    """A port at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    """A port at which nobody listens."""
    return redis_server.free_port()


def test_a_server_that_answers_is_there(port: int) -> None:
    assert require(f"redis://127.0.0.1:{port}/0") == f"redis://127.0.0.1:{port}/0"


@pytest.mark.parametrize("value", ["", "0"])
def test_without_a_server_a_test_is_skipped(free_port: int, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRRA_REQUIRE_SERVICES", value)
    with pytest.raises(pytest.skip.Exception, match=f"nothing answers at 127.0.0.1:{free_port}"):
        require(f"mysql://root:secret@127.0.0.1:{free_port}/test")


def test_without_a_required_server_a_test_fails(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWRRA_REQUIRE_SERVICES", "1")
    with pytest.raises(pytest.fail.Exception, match=f"nothing answers at 127.0.0.1:{free_port}"):
        require(f"postgresql://root:secret@127.0.0.1:{free_port}/test")


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis://", ("127.0.0.1", 6379)),
        ("postgresql://me@db/test", ("db", 5432)),
        ("mysql://me:p%40ss@db:3307/test", ("db", 3307)),
    ],
)
def test_an_address_is_read_from_a_url(url: str, found: tuple[str, int]) -> None:
    assert address(url) == found
