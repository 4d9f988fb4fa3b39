"""The address of a Redis or Valkey server, and how to reach it: one server, a Sentinel group, a cluster; TLS or not.

``redis://[user:password@]host[:port][/db]``, ``rediss://`` for TLS, ``redis+sentinel://host[:port],host…/GROUP[/db]``,
``redis+cluster://host[:port],host…``; ``valkey`` may replace ``redis`` in each. Options follow a ``?``: those of redis-py's
connections (``ssl_ca_certs=…``); ``timeout`` in seconds, after which the server counts as unreachable; and ``processes``, the
number that a process assumes if it has never reached the server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from ratekeeper.errors import StoreError

__all__ = ["Address", "connect", "failures", "is_address", "parse_address"]

_SCHEMES: Final = {"redis": False, "rediss": True, "valkey": False, "valkeys": True}
"""Scheme -> whether it means TLS."""
_TIMEOUT: Final = 1.0
_PORTS: Final = {"": 6379, "cluster": 6379, "sentinel": 26379}


class Address(NamedTuple):
    """Where the server is.

    Attributes:
        kind: ``""`` (one server), ``sentinel`` or ``cluster``.
        hosts: (name, port), at least one.
        group: the name under which the sentinels know the server.
        db: number of the database.
        tls: whether the connection is encrypted.
        user, password: of the server's access list.
        timeout: seconds after which the server counts as unreachable.
        processes: how many share the budgets until they can be counted.
        options: for redis-py's connections.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...]
    group: str
    db: int
    tls: bool
    user: str | None
    password: str | None
    timeout: float
    processes: int
    options: dict[str, str]

    def __str__(self) -> str:
        """Return the address for people, without the password."""
        kind = f"+{self.kind}" if self.kind else ""
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        group = f"/{self.group}" if self.group else ""
        return f"{'rediss' if self.tls else 'redis'}{kind}://{hosts}{group}" + (f"/{self.db}" if self.db else "")

    def __repr__(self) -> str:
        return str(self)


def is_address(name: str) -> bool:
    """Whether a store's name is a server address."""
    return "://" in name and name.partition("://")[0].partition("+")[0] in _SCHEMES


def parse_address(text: str) -> Address:
    """Parse an address.

    Raises:
        StoreError: the text is no address; the message shows no password.
    """
    scheme, _, rest = text.partition("://")
    base, _, kind = scheme.partition("+")
    if not is_address(text) or kind not in _PORTS:
        raise StoreError(f"{scheme!r} is no kind of server: use redis, rediss, redis+sentinel or redis+cluster")
    authority, _, query = rest.partition("?")
    places, *path = authority.split("/")
    login, _, places = places.rpartition("@")
    user, _, password = login.partition(":")
    try:
        hosts = tuple(_host(place, _PORTS[kind]) for place in places.split(",") if place)
        options = dict(parse_qsl(query, strict_parsing=True)) if query else {}
        timeout = float(options.pop("timeout", _TIMEOUT))
        processes = int(options.pop("processes", 1))
        group = path.pop(0) if kind == "sentinel" and path else ""
        db = int(path[0]) if path and path[0] else 0
    except ValueError as error:
        raise StoreError(f"the address of the {base} server cannot be read: {error}") from None
    if not hosts or (kind == "sentinel" and not group) or not 0 < timeout < 60:
        raise StoreError(
            f"the address of the {base} server lacks {'a host' if not hosts else 'a group' if not group else 'a timeout'}"
            ": write redis://host:6379/0, or redis+sentinel://host:26379/GROUP"
        )
    return Address(
        kind, hosts, group, db, _SCHEMES[base],
        unquote(user) or None, unquote(password) or None, timeout, max(1, processes), options,
    )  # fmt: skip


def _host(place: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{place}")
    return parts.hostname or "localhost", parts.port or port


def failures() -> tuple[type[Exception], ...]:
    """Return the exceptions that redis-py raises when a server does not answer, or refuses.

    Raises:
        StoreError: the package is missing.
    """
    try:
        from redis.exceptions import RedisClusterException, RedisError
    except ModuleNotFoundError:
        raise StoreError(
            "a store on a server needs redis-py: pip install '.[redis]' in a clone of Ratekeeper"
        ) from None
    return RedisError, RedisClusterException, OSError


def connect(address: Address, connected: Callable[[], None]) -> Any:
    """Return a client of redis-py. It sends nothing before its first command.

    Args:
        address: of the server.
        connected: called for every new connection.

    Raises:
        StoreError: the package is missing.
    """
    failures()
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    def greet(connection: Any) -> None:
        connection.on_connect()
        connected()

    common: dict[str, Any] = {
        "username": address.user,
        "password": address.password,
        "socket_timeout": address.timeout,
        "socket_connect_timeout": address.timeout,
        "socket_keepalive": True,
        "client_name": "ratekeeper",
        "retry": Retry(NoBackoff(), 0),  # the caller decides; a script that was sent twice would charge twice
        **address.options,
    }
    if address.tls:
        common["ssl"] = True
    if address.kind == "cluster":
        library: Any = redis  # partly untyped
        nodes = [library.cluster.ClusterNode(host, port) for host, port in address.hosts]
        return library.RedisCluster(
            startup_nodes=nodes, redis_connect_func=lambda _: connected(), dynamic_startup_nodes=True, **common
        )
    common |= {"db": address.db, "redis_connect_func": greet}
    if address.kind == "sentinel":
        quiet = {"socket_timeout": address.timeout, "socket_connect_timeout": address.timeout}
        sentinel: Any = redis.Sentinel
        group = sentinel(list(address.hosts), sentinel_kwargs=quiet)
        return group.master_for(address.group, **common)
    host, port = address.hosts[0]
    return redis.Redis(host=host, port=port, **common)
