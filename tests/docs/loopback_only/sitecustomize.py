"""Put on the path of every documentation example: whatever it runs may talk to this machine only."""

import sys


def _guard(event: str, arguments: tuple) -> None:
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host and host != "localhost" and host != "::1" and not host.startswith("127."):
        raise OSError(f"an example of the documentation may not leave this machine, but wants {host}")


sys.addaudithook(_guard)
