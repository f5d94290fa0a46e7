"""Pure: which addresses belong to the public internet, and what a URL that somebody gave us means.

Called by `guarded.py` before it connects anywhere. The networks are written out here rather than taken from `ipaddress`, whose
`is_global` says different things in different versions of Python. No I/O, no name look-up.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from hortator.errors import InvalidRequest

MAX_URL = 4_096
"""Characters."""
PORTS = {"http": 80, "https": 443}
_LOWEST_PORT = 1_024
"""Below it only the schemes' own ports: the others are mail, directories, remote shells."""

_PRIVATE_4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared by carriers; a cloud's metadata lives there too
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's own services inside its virtual machines
            "169.254.0.0/16",  # link-local; 169.254.169.254 is the metadata of most clouds
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
_PUBLIC_6 = IPv6Network("2000::/3")
"""All of IPv6 that has been given out; everything else (loopback, local, multicast, reserved) is outside it."""
_PRIVATE_6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocols, Teredo among them
            "2001:db8::/32",
            "2002::/16",  # 6to4, whatever address it holds
            "3fff::/20",
        ),
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)
_LINK_LOCAL = (IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/10"), IPv6Network("fd00:ec2::254/128"))
_HOST = re.compile(r"[a-z0-9_][a-z0-9_-]{0,62}(\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_LOCAL_NAMES = (".localhost", ".local", ".internal")

Address = IPv4Address | IPv6Address


class Place(NamedTuple):
    """Where a URL leads."""

    scheme: str
    host: str
    """A name in small ASCII letters, or an address without brackets."""
    port: int
    target: str
    """Path and query, percent-encoded."""


def place(url: str) -> Place:
    """Return where a URL leads. Raises InvalidRequest (`invalid_url`), which does not repeat it."""
    # `urlsplit` drops tabs and line ends, and browsers take a backslash for a slash: two readings of one URL are refused.
    if len(url) > MAX_URL or any(letter <= " " or letter in "\\\x7f" for letter in url):
        raise _invalid(f"it must be at most {MAX_URL} characters without blanks or backslashes")
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
    except ValueError:  # UnicodeError among them
        raise _invalid("it cannot be read") from None
    if scheme not in PORTS:
        raise _invalid("it must begin with http:// or https://")
    if "@" in parts.netloc:
        raise _invalid("it must not hold a user name or password")
    host = host.lower().removesuffix(".")
    if _literal(host) is None and ("[" in parts.netloc or not _is_name(host)):
        raise _invalid("its host is not a name or an address")
    port = PORTS[scheme] if port is None else port
    if port not in PORTS.values() and port < _LOWEST_PORT:
        raise _invalid(f"its port must be 80, 443, or {_LOWEST_PORT} and more")
    target = quote(parts.path or "/", safe="/%:=&+!$,;'@()*~[]-._")
    if parts.query:
        target += "?" + quote(parts.query, safe="/%:=&+!$,;'@()*~[]-._?")
    return Place(scheme, host, port, target if target.startswith("/") else "/" + target)


def is_public(address: Address) -> bool:
    """Whether an address is one that anybody on the internet could reach, looking through addresses that hold another."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _PRIVATE_4)
    if address.scope_id is not None:
        return False
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    low = IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _NAT64:
        return is_public(low)
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP and not is_public(low):
        return False
    return address in _PUBLIC_6 and not any(address in network for network in _PRIVATE_6)


def is_link_local(address: Address) -> bool:
    """Whether an address is of this link only: metadata of clouds, which no name is a good reason to ask."""
    inner = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return any((inner or address) in network for network in _LINK_LOCAL)


def refused_by_name(host: str) -> bool:
    """Whether a host need not be looked up to be known as not public."""
    address = _literal(host)
    if address is not None:
        return not is_public(address)
    return host == "localhost" or host.endswith(_LOCAL_NAMES)


def matches(place: Place, patterns: tuple[str, ...]) -> bool:
    """Whether a host is named by one of `host[:port]` (globs). Without a port: the scheme's own."""
    host = f"[{place.host}]" if ":" in place.host else place.host
    return any(
        fnmatchcase(f"{host}:{place.port}", pattern)
        or (place.port == PORTS[place.scheme] and fnmatchcase(host, pattern))
        for pattern in map(str.lower, map(_brackets, patterns))
    )


def _brackets(pattern: str) -> str:
    """Return a pattern whose `[` means itself: no host needs a class of letters, an IPv6 address has brackets."""
    return pattern.replace("[", "[[]")


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_name(host: str) -> bool:
    """Whether it is a name. What ends in a number is an address in one of the old spellings (`127.1`, `0x7f000001`)."""
    return len(host) <= 253 and _HOST.fullmatch(host) is not None and _NUMBER.fullmatch(host.rpartition(".")[2]) is None


def _invalid(reason: str) -> InvalidRequest:
    return InvalidRequest(f"This URL cannot be used: {reason}.", code="invalid_url", param="url")
