"""Start the page: a temporary folder, the model, the server; everything is removed at the end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtoken.demos.settings import Settings
from vtoken.errors import InputError, require


@dataclass(frozen=True)
class Server:
    """A page that is being served.

    Attributes:
        url: where a browser finds it.
        public: the public link, where one was asked for.
        runner: models and visitors.
        blocks: Gradio's own object.
    """

    url: str
    public: str | None
    runner: Any
    blocks: Any


@contextmanager
def serving(settings: Settings) -> Iterator[Server]:
    """Serve the page for the length of a block.

    Raises:
        MissingExtraError: Gradio is not installed.
        InputError: the model cannot be loaded, or the port is taken.
    """
    require("gradio", "demo", "vtoken demo")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    root = Path(tempfile.mkdtemp(prefix="vtoken-demo-")).resolve()
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(root)  # Gradio's own name for the folder of uploads
    blocks = None
    try:
        from vtoken.demos.runner import Runner

        runner = Runner(settings, root)
        runner.models.get(settings.model)
        blocks = page(runner)
        yield _launch(blocks, settings, runner)
    finally:
        if blocks is not None:
            blocks.close()
        shutil.rmtree(root, ignore_errors=True)
        if before is None:
            os.environ.pop("GRADIO_TEMP_DIR", None)
        else:
            os.environ["GRADIO_TEMP_DIR"] = before


def page(runner: Any) -> Any:
    """The page as ``gr.Blocks``."""
    import gradio as gr

    from vtoken.demos import api, events, parts
    from vtoken.demos.live import Lives

    lives = Lives(runner, runner.settings.max_live)
    age = runner.settings.keep_uploads
    with gr.Blocks(title="vtoken", analytics_enabled=False, fill_width=True, delete_cache=(60, age)) as blocks:
        made = parts.layout(runner)
        events.wire(made, runner, lives)
        events.again(made, blocks)
        api.offer(runner)
        blocks.unload(events.forget(runner, lives))
    return blocks.queue(max_size=64, default_concurrency_limit=8)


def _launch(blocks: Any, settings: Settings, runner: Any) -> Server:
    from vtoken.demos.theme import asset, theme

    port = settings.port or _free(settings.host)
    try:
        _, url, public = blocks.launch(
            server_name=settings.host,
            server_port=port,
            share=settings.share,
            root_path=settings.root_path or None,
            max_file_size=settings.upload_bytes,
            theme=theme(),
            head=f"<style>{asset('style.css')}</style>",  # as css= Gradio would rewrite its media queries
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            ssr_mode=False,
            footer_links=[],
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
        )
    except OSError as error:
        raise InputError(
            f"--port={port} on {settings.host} cannot be opened ({error}); choose another --port"
        ) from error
    return Server(url, public, runner, blocks)


def _free(host: str) -> int:
    with socket.socket() as found:
        found.bind((host, 0))
        return found.getsockname()[1]


def serve(settings: Settings) -> None:
    """Serve the page until the process is interrupted."""
    # a stopped service cleans up as Ctrl+C does; Python's own handler, since a shell may have it ignore SIGINT
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with serving(settings) as server:
        print("Ctrl+C stops the page.", flush=True)
        print(f"vtoken demo: {server.url}" + (f" and {server.public}" if server.public else ""), flush=True)
        server.blocks.block_thread()
