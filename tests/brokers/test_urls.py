"""The URLs of servers: how they are read, and that no message about them holds a password."""

import re

import pytest

from flowrra import BrokerConfig, Config, ConfigError, Flowrra
from flowrra_extras.scheduler import store_from_url
from flowrra_extras.urls import check_options, read_server_url, shown_url

# A password that nobody encoded, in each place where that can be.
RAW_PASSWORDS = ["se#cret", "se/cret", "se?cret", "s@e/cret", "s@e#cret", "s@e?cret", "321#cret", "321/cret", "secret#"]


def test_a_url_is_taken_apart() -> None:
    url = read_server_url("PostgreSQL://me%40home:p%40s%2Fs%3A@db.example:5433,[::1]/my%20app?schema=a%40b&x=")
    assert (url.scheme, url.user, url.password) == ("postgresql", "me@home", "p@s/s:")
    assert url.hosts == (("db.example", 5433), ("::1", None))
    assert (url.path, url.options) == ("my app", {"schema": "a@b", "x": ""})
    assert url.shown == "PostgreSQL://db.example:5433,[::1]/my%20app"
    assert "p@s" not in repr(url)


def test_an_at_sign_in_a_password_is_no_riddle() -> None:
    url = read_server_url("redis://:p@ss@host:7000/1")
    assert (url.password, url.hosts, url.shown) == ("p@ss", (("host", 7000),), "redis://host:7000/1")


def test_what_a_url_leaves_out_is_none() -> None:
    url = read_server_url("redis://")
    assert (url.user, url.password, url.hosts, url.path, url.options) == (None, None, (("", None),), "", {})


@pytest.mark.parametrize("password", RAW_PASSWORDS)
@pytest.mark.parametrize("scheme", ["redis", "rediss", "postgresql", "postgres", "mysql"])
@pytest.mark.parametrize("user", ["", "ann"])
def test_a_password_that_is_not_encoded_is_refused_and_not_shown(scheme: str, user: str, password: str) -> None:
    url = f"{scheme}://{user}:{password}@localhost:1/app"
    make = store_from_url if scheme == "mysql" else Flowrra.from_urls
    with pytest.raises(ConfigError, match=r"write / as %2F, \? as %3F, # as %23 and @ as %40") as caught:
        make(url)
    assert not re.search("cret|321", str(caught.value))
    assert "cret" not in shown_url(url)


@pytest.mark.parametrize("scheme", ["redis", "postgresql", "mysql"])
@pytest.mark.parametrize(
    "rest", ["ann:secret", ":secret", "host:secret/0", "host:0/0", "host:70000/0", "host:/0", "host:²/0"]
)
def test_a_port_that_is_none_is_refused_and_not_shown(scheme: str, rest: str) -> None:
    make = store_from_url if scheme == "mysql" else Flowrra.from_urls
    with pytest.raises(ConfigError, match="must be a number from 1 to 65535") as caught:
        make(f"{scheme}://{rest}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://ann:secret@host/0",  # no broker's scheme
        "rediss:/ann:secret@host/0",
        "ann:secret@host",
        "redis://ann:secret@host/app",
        "redis://ann:secret@host/0?timeout=5",
        "redis+sentinel://ann:secret@one,two",
        "rediss://ann:secret@host/0?ssl_ca_certs=/nowhere",
        "postgresql://ann:secret@host/app?schema=A",
        "postgresql://ann:secret@host/app?pool_sise=5",
        "postgresql://ann:secret@host/app?sslmode=a&sslmode=b",
    ],
)
def test_no_refusal_shows_a_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Flowrra.from_urls(url)
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(Config(broker=BrokerConfig(url=url)))


def test_a_misspelt_option_gets_the_nearest_one() -> None:
    url = read_server_url("redis://ann:secret@host/0?prefiks=a")
    with pytest.raises(ConfigError, match=r"^redis://host/0 has .* 'prefiks'; did you mean 'prefix'\?$"):
        check_options(url, ("prefix", "db"))
    with pytest.raises(ConfigError, match="there are none"):
        check_options(url, ())


def test_an_option_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="an option twice: a, b"):
        read_server_url("redis://host/0?a=1&b=2&b=3&c=4&a=1")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:secret@db:5432/app?password=x", "postgresql://ann@db:5432/app"),
        ("sqlite:///jobs.db", "sqlite:///jobs.db"),
        ("redis://:secret@localhost/0", "redis://localhost/0"),
        ("memory://", "memory://"),
        ("memory", "memory"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert shown_url(url) == shown
