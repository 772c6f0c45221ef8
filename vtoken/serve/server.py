"""Start the server; SIGTERM lets answers in flight end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vtoken.errors import InputError, require
from vtoken.serve.settings import Settings

LATE = 10  # seconds behind --grace after which connections that take nothing are dropped


@dataclass(frozen=True)
class Server:
    """A server that runs in a thread.

    Attributes:
        url: where clients find it, with ``/v1`` behind it for OpenAI's.
        service: model, queue and metrics.
    """

    url: str
    service: Any


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[Server]:
    """Serve for the length of a block, from a thread of its own.

    Raises:
        MissingExtraError: a package of the extra "serve" is not installed.
        InputError: the model cannot be loaded, or the port is taken.
    """
    service, server, listening = _made(settings)
    thread = threading.Thread(target=server.run, args=([listening],), name="vtoken-serve", daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Server(_url(listening), service)
    finally:
        server.should_exit = True
        thread.join()
        service.close()


def serve(settings: Settings) -> None:
    """Serve until the process gets SIGTERM or SIGINT; answers in flight end first."""
    service, server, listening = _made(settings)
    try:
        print(f"vtoken serve: {_url(listening)} model {settings.name!r}", flush=True)
        server.run([listening])
    finally:
        service.close()


def _made(settings: Settings) -> tuple[Any, Any, socket.socket]:
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, "serve", "vtoken serve")
    import uvicorn

    from vtoken.serve.app import Service, application

    listening = _listen(settings)
    try:
        service = Service(settings)
    except BaseException:
        listening.close()
        raise
    config = uvicorn.Config(
        application(service),
        log_level="warning",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(settings.grace) + LATE,
        h11_max_incomplete_event_size=2**16,
        server_header=False,
    )
    return service, _with_grace(uvicorn.Server)(config, service, settings.grace), listening


def _with_grace(base: Any) -> Any:
    class Graceful(base):
        """Ends what is in flight after ``grace`` seconds, and leaves the process with exit code 0."""

        def __init__(self, config: Any, service: Any, grace: float) -> None:
            super().__init__(config)
            self._service, self._grace = service, grace

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            late = asyncio.get_running_loop().call_later(self._grace, self._service.desk.cut)
            await super().shutdown(sockets)
            late.cancel()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            known = (signal.SIGTERM, signal.SIGINT)
            before = {sig: signal.signal(sig, self.handle_exit) for sig in known}
            try:
                yield
            finally:
                for sig, handler in before.items():
                    signal.signal(sig, handler)

    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return Graceful


def _listen(settings: Settings) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family[0], socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(family[4])
        return made
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"--port={settings.port} on {settings.host} cannot be opened ({error}); choose another --port"
        ) from error


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
