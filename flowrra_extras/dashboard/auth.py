"""Who has which access, and the security headers of every answer.

All access decisions are made here, from the request alone.
"""

import hmac
import ipaddress
import re
import secrets
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flowrra import ConfigError
from flowrra_extras.dashboard.http import Request, media_type

Level = Literal["none", "read", "full"]
LEVELS: tuple[Level, ...] = ("none", "read", "full")
SAFE_METHODS = frozenset(("GET", "HEAD"))
TOKEN_COOKIE = "flowrra_token"  # noqa: S105 (its name)

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not "no-referrer": browsers would then hide the origin of our own forms ("null") from ourselves too.
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
}
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32}")  # as token_urlsafe(24) makes them
# Headers in which proxies, load balancers and content networks pass on the address of the client.
_FORWARDING = re.compile(
    r"x-forwarded(-.+)?|forwarded(-.+)?|x-original-(forwarded-for|host)|x-real-ip|via|(x-)?(cluster-)?client-ip|"
    r"cf-connecting-ip(v6)?|true-client-ip|fastly-client-ip|fly-client-ip|x-envoy-external-address|x-azure-clientip|"
    r"x-appengine-user-ip|x-remote-(ip|addr)|x-host"
)


@dataclass(slots=True, frozen=True)
class Access:
    """What a visitor may do. `who` is noted on the jobs that the visitor changes; `token` is a field of the forms.

    Raises:
        ConfigError: the level does not exist, or `who` is not a text.
    """

    level: Level = "none"
    who: str = "dashboard"
    token: str = ""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ConfigError(f"auth= must return 'none', 'read', 'full' or an Access, not {self.level!r}")
        if not isinstance(self.who, str):
            raise ConfigError(f"who= of an Access must be a text, such as the name of a user, not {self.who!r}")

    def allows(self, level: Level) -> bool:
        """Whether that much is allowed."""
        return LEVELS.index(self.level) >= LEVELS.index(level)


class Door:
    """Decides the access of visitors, by the arguments that `Options` describes.

    Raises:
        ConfigError: `auth` and `insecure` are both given, or `auth` cannot be called.
    """

    def __init__(
        self, auth: Callable[[Any], Any] | None = None, *, insecure: bool = False, read_only: bool = False
    ) -> None:
        if auth is not None and not callable(auth):
            raise ConfigError(f"auth= must be a function that takes the request, not {auth!r}")
        if auth is not None and insecure:
            raise ConfigError("give auth= or insecure=True, not both: insecure=True allows every request")
        self.auth = auth
        self._insecure = insecure
        self._read_only = read_only

    def access(self, request: Request, answer: Any) -> Access:
        """The access of a visitor. `answer` is what `auth` returned for the request; without `auth` it is ignored."""
        if self.auth is not None:
            granted = _granted(answer)
        else:
            granted = Access("full" if self._insecure or stranger(request) is None else "none")
        level: Level = "read" if self._read_only and granted.level == "full" else granted.level
        who = f"dashboard ({request.client})" if granted.who == "dashboard" and request.client else granted.who
        return Access(level, who[:100], token_of(request) or secrets.token_urlsafe(24))

    def why_closed(self, request: Request) -> str:
        """The message for a visitor without access."""
        if self.auth is not None:
            return "You have no access to this dashboard."
        return (
            f"This dashboard answers only requests from its own host, and {stranger(request)}. "
            "To allow other requests, mount it with auth=, a function that decides who has access. "
            "insecure=True (on the command line: --insecure) allows every request."
        )


def _granted(answer: Any) -> Access:
    """What `auth` has answered; ConfigError if it is no answer."""
    if isinstance(answer, Access):
        return answer
    if answer is None or isinstance(answer, bool):
        return Access("full" if answer else "none")
    return Access(answer)


# Requests that are not from this host ----------------------------------------------------------


def stranger(request: Request) -> str | None:
    """Why the request cannot count as one from this host; None if it can.

    A proxy on this host passes on requests from anywhere, so a request through a proxy does not count. Neither does a
    request for the name of another host: a web page can make its own name resolve to 127.0.0.1.
    """
    if not is_loopback(request.client or ""):
        return f"this request comes from {request.client or 'an unknown address'}"
    if name := next(filter(_FORWARDING.fullmatch, request.headers), None):
        return f"this request came through a proxy (it has the header {name})"
    host = host_name(request.headers.get("host", ""))
    if host != "localhost" and not is_loopback(host):
        return f"this request is for the host {host[:100]!r}, which is not a loopback name of this host"
    return None


def is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


# Requests from other sites ---------------------------------------------------------------------


def prying(request: Request) -> str | None:
    """Why a request that changes nothing is refused because another site sent it; None if it is not.

    A link on another site may lead here. Its scripts, images and frames are refused: they cannot read the answer, but
    they would cause load and use up the places for streams.
    """
    site = request.headers.get("sec-fetch-site")
    if site is None:
        return crossing(request)
    mode, place = request.headers.get("sec-fetch-mode"), request.headers.get("sec-fetch-dest")
    if site in ("same-origin", "none") or (mode, place) == ("navigate", "document"):
        return None
    return f"its Sec-Fetch-Site is {site[:40]!r}, and it does not follow a link"


def crossing(request: Request) -> str | None:
    """Why a request may have been sent by another site; None if it was not.

    By HTTPS and on the loopback browsers say where a request comes from; else its origin is compared with the host.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return None if site == "same-origin" else f"its Sec-Fetch-Site is {site[:40]!r}, not 'same-origin'"
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if origin is None or (host and origin.partition("://")[2] == host):
        return None
    return (
        f"its Origin is {origin[:200]!r}, but its Host is {host[:200]!r}. "
        "If there is a proxy, it must pass the Host header on (nginx: proxy_set_header Host $http_host)"
    )


def unproven(request: Request, field: str | None) -> str | None:
    """Why a request may have come from a form on another site; None if it proves that it did not.

    A form elsewhere cannot send JSON, and does not know the token. `field` is the token in the form.
    """
    if media_type(request) == "application/json":
        return None
    expected = token_of(request)
    if expected and field and hmac.compare_digest(expected.encode(), field.encode()):
        return None
    return (
        "it is not JSON (Content-Type: application/json), and the token of its page is missing or out of date. "
        f"Reload the page and try again; the browser must accept the cookie {TOKEN_COOKIE}"
    )


def token_of(request: Request) -> str | None:
    """The token in the visitor's cookie, if it is one of ours."""
    for cookie in request.headers.get("cookie", "").split(";"):
        name, _, value = cookie.strip().partition("=")
        if name == TOKEN_COOKIE and _TOKEN.fullmatch(value):
            return value
    return None


def sealed(text: str, token: str) -> str:
    """The text with a seal at its end that takes the visitor's token to make."""
    return f"{text}.{hmac.digest(token.encode(), text.encode(), 'sha256').hex()[:32]}"


def token_cookie(request: Request, token: str) -> str:
    """The header that hands the visitor the token.

    Lax, not Strict: a link from elsewhere would come without it, and a new token would undo the pages in other tabs.
    """
    secure = "; Secure" if request.scheme == "https" else ""
    path = urllib.parse.quote(request.root or "/")
    return f"{TOKEN_COOKIE}={token}; Path={path}; HttpOnly; SameSite=Lax{secure}"
