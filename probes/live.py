"""A training's curves in a browser while it runs: `python -m probes.live runs/sample`; `pretrain.train --serve` starts it.

Drawn anew from the run's log whenever the browser asks. Only this machine can reach it: elsewhere, forward the port with ssh.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import tyro

from checkpoints import terminal
from checkpoints.cli import UserError, parse, run_command
from probes.report import page as report_page
from probes.report import run as report_run
from probes.report.page import Section

HOST = "127.0.0.1"
EVERY = 5
"""Seconds between two looks of the browser."""
MOST = 16
"""Connections at a time, each with a thread: when another comes, the oldest is closed."""
PATIENCE = 10
"""Seconds that a client may say nothing, or take to read its page."""
POLICY = report_page.POLICY + "; script-src 'unsafe-inline'; connect-src 'self'"
SCRIPT = f"""
const parts = () => [...document.querySelectorAll("main summary, main [tabindex]")];
const said = document.querySelector("header p");
said.setAttribute("role", "status");
const look = async () => {{
  try {{
    const answer = await fetch("/", {{cache: "no-store"}});
    const next = new DOMParser().parseFromString(await answer.text(), "text/html");
    const open = [...document.querySelectorAll("details")].map(one => one.open);
    const at = parts().indexOf(document.activeElement);
    document.querySelector("main").innerHTML = next.querySelector("main").innerHTML;
    document.querySelectorAll("details").forEach((one, place) => one.open = !!open[place]);
    if (at >= 0) parts()[at]?.focus({{preventScroll: true}});
    said.textContent = next.querySelector("header p").textContent;
  }} catch {{
    said.textContent = "The training no longer answers: it has ended or was stopped. Shown is its last state.";
    clearInterval(looking);
  }}
}};
const looking = setInterval(look, {EVERY * 1000});
"""


@dataclass(frozen=True)
class LiveOptions:
    """Show a run's training curves in a browser while it runs."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    port: int = 8000
    """Port on this machine's own address; 0 for any free one."""
    attached: bool = False
    """End when the standard input is closed, as it is when whoever started this has ended."""


def page(folder: Path) -> str:
    """The page as things stand; before the run has begun, a page that says so."""
    title, script = f"iBOT pretraining: {folder.resolve().name}", SCRIPT
    try:
        run = report_run.read(folder)
        sections = [report_run.summary_section(run), report_run.curves(run)]
    except UserError as error:
        said = f"The run cannot be shown: {error}." if report_run.is_run(folder) else "The run has not logged anything yet."
        sections = [Section("run-0", "Pretraining run", report_page.paragraph(said))]
    lead = f"Live: updated {time.strftime('%H:%M:%S')}, every {EVERY} seconds."
    foot = "When training has ended, the run's folder has all of this and more in report.html."
    return report_page.document(title, lead, sections, foot, policy=POLICY, script=script)


class Server(ThreadingHTTPServer):
    """No more than MOST clients at a time, whatever they leave undone."""

    def __init__(self, *arguments: Any) -> None:
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            for old in self._open[: len(self._open) + 1 - MOST]:
                with contextlib.suppress(OSError):  # it has gone by itself
                    old.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes it
                self._open.remove(old)
            self._open.append(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            if request in self._open:
                self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error of ours."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def server(folder: Path, port: int) -> Server:
    """Answers for one page and nothing else. Raises UserError where the port cannot be had."""

    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE

        def do_GET(self) -> None:
            known = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}  # type: ignore[attr-defined]
            if self.headers.get("Host") not in known:  # a stranger's page that has this address under a name of its own
                self.send_error(403)
                return
            if self.path != "/":
                self.send_error(404)
                return
            content = page(folder).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    try:
        return Server((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} cannot be used ({error}): give another one, or 0 for any that is free") from error


def end_with_input(running: Server) -> None:
    """Stop the server when standard input is closed."""
    sys.stdin.read()
    running.shutdown()


def main(arguments: Sequence[str]) -> None:
    options = parse(LiveOptions, arguments, prog="python -m probes.live")
    with server(options.run, options.port) as running:
        terminal.say(f"live report: http://{HOST}:{running.server_port}/")
        if options.attached:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for standard in (1, 2):  # nobody reads on, and who writes into a full pipe waits for ever
                os.dup2(nowhere, standard)
            threading.Thread(target=end_with_input, args=(running,), daemon=True).start()
        running.serve_forever()


if __name__ == "__main__":
    sys.exit(run_command(main))
