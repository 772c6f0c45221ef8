"""Files behind http and https addresses, of hosts that are allowed and public; every redirect is checked again.

A host name is looked up once, all of its addresses are checked, and the connection goes to the address that was
checked: a name that changes its address in between changes nothing.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

from vtoken.serve.errors import Refused

REDIRECTS = 5
WAIT = 10.0  # seconds to connect, and to wait for more
LONGEST = 60.0  # seconds for the whole file
CHUNK = 2**16


def fetch(url: str, target: Path, hosts: Sequence[str], most: int, stopped: Callable[[], bool] = lambda: False) -> None:
    """Write what an address gives to a file.

    Args:
        hosts: names that may be opened; "*" is every host whose addresses are all public.
        most: largest file, bytes.
        stopped: asked between two pieces; True ends it.

    Raises:
        Refused: an address that may not be opened, cannot be reached, or gives too much.
    """
    end = time.monotonic() + LONGEST
    for _ in range(REDIRECTS + 1):
        place = _checked(url, hosts)
        try:
            response = _get(place, hosts)
            if response.status in (301, 302, 303, 307, 308):
                url = urljoin(url, response.getheader("Location", ""))
                response.close()
                continue
            if response.status != 200:
                raise Refused(f"{_shown(place)}: the server answered with status {response.status}", 400, "url")
            _write(response, target, place, most, lambda: stopped() or time.monotonic() > end)
            return
        except (OSError, http.client.HTTPException, ssl.SSLError) as error:
            told = type(error).__name__
            raise Refused(f"{_shown(place)}: cannot be fetched ({told}); check the address", 400, "url") from error
    raise Refused(f"{url!r:.120}: more than {REDIRECTS} redirects", 400, "url")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, also behind the forms that carry an IPv4 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in ipaddress.ip_network("64:ff9b::/96") or ip in ipaddress.ip_network("::/96"):
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        carried = [one for one in inner if one is not None]
        if carried:
            return all(is_public(str(one)) for one in carried)
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _checked(url: str, hosts: Sequence[str]) -> SplitResult:
    try:
        place = urlsplit(url)
        place.port  # noqa: B018  raises where it is no number
    except ValueError as error:
        raise Refused(f"{url!r:.120} is no address ({error})", 400, "url") from error
    if place.scheme not in ("http", "https") or not place.hostname:
        raise Refused(f"{url!r:.120}: only http and https addresses are fetched", 400, "url")
    if place.username is not None or place.password is not None:
        raise Refused("an address with a user name or password in it is not fetched", 400, "url")
    if any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise Refused("an address with blanks or control characters is not fetched", 400, "url")
    if not hosts:
        raise Refused("this server fetches no addresses; send the video as a data: address", 400, "url", "not_allowed")
    if place.hostname not in hosts and "*" not in hosts:
        raise Refused(f"{place.hostname}: this server does not fetch from this host", 400, "url", "not_allowed")
    return place


def _get(place: SplitResult, hosts: Sequence[str]) -> http.client.HTTPResponse:
    """The response to GET, from an address that was checked."""
    host = place.hostname or ""
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(f"{host}: there is no such host", 400, "url") from error
    addresses = [str(entry[4][0]) for entry in found]
    if host not in hosts and not all(map(is_public, addresses)):
        raise Refused(f"{host}: its address is not public, so it is not opened", 400, "url", "not_allowed")
    connection = http.client.HTTPConnection(host, port, timeout=WAIT)
    plain = socket.create_connection((addresses[0], port), WAIT)
    if place.scheme == "https":
        plain = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    connection.sock = plain
    path = (place.path or "/") + (f"?{place.query}" if place.query else "")
    connection.request("GET", path, headers={"Accept-Encoding": "identity", "User-Agent": "vtoken"})
    return connection.getresponse()


def _write(
    response: http.client.HTTPResponse, target: Path, place: SplitResult, most: int, late: Callable[[], bool]
) -> None:
    told = response.getheader("Content-Length", "")
    if told.isdigit() and int(told) > most:
        raise Refused(f"{_shown(place)}: {int(told):,} bytes, above the limit of {most:,}", 413, "url", "too_large")
    got = 0
    with target.open("wb") as file:
        while piece := response.read1(CHUNK):
            got += len(piece)
            if got > most:
                raise Refused(f"{_shown(place)}: more than the limit of {most:,} bytes", 413, "url", "too_large")
            if late():
                raise Refused(f"{_shown(place)}: not complete after {LONGEST:g} seconds", 400, "url")
            file.write(piece)
    if told.isdigit() and got < int(told):
        raise Refused(f"{_shown(place)}: cut off after {got:,} of {int(told):,} bytes", 400, "url")


def _shown(place: SplitResult) -> str:
    """An address without its query, which may hold a password."""
    return f"{place.scheme}://{place.hostname}{place.path}"[:120]
