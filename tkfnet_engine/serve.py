"""`python -m tkfnet_engine.serve ENGINE..`: serves engines with NVIDIA Triton Inference Server.

With --repository DIR it only writes the model repository, for a Triton elsewhere. Else it runs the tritonserver that
nvidia-pytriton carries, behind nginx, until SIGTERM or SIGINT. docs/serving.md tells what clients send.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import signal
import socket
import tempfile
from collections.abc import Sequence
from typing import Any

from .console import Parser, emit_json, run_command, say
from .errors import UsageError
from .serving.config import KINDS, Options
from .serving.limits import Limits
from .serving.repository import write_repository
from .trust import TRUST_HELP

_LIMITS = {
    "max-images": (int, "N", "images of one request"),
    "max-queue": (int, "N", "requests that wait for a model; one more gets 503"),
    "queue-seconds": (float, "S", "how long a request may wait; then 503"),
    "request-seconds": (float, "S", "for a whole answer; then 503"),
    "max-body": (int, "BYTES", "of a request; above, 413"),
    "max-json": (int, "BYTES", "of the JSON before a tensor; above, 400"),
    "max-pixels": (int, "N", "of a picture, as its header says; above, 400"),
    "drain-seconds": (int, "S", "for requests in flight when told to stop"),
    "delay-us": (int, "US", "how long a request may wait for others to run with"),
    "connections": (int, "N", "open connections, all clients together"),
}
# They do nothing where only a repository is written.
_LOCAL = ("host", "http_port", "grpc_port", "metrics_port", "python", "direct", "check_seconds", "start_seconds")


def parser() -> Parser:
    p = Parser(prog="python -m tkfnet_engine.serve", description=__doc__.partition(": ")[2].partition("\n")[0])
    p.add_argument("engines", metavar="ENGINE", nargs="+", help="engine files (.tkf); a model is called as its file")
    p.add_argument(
        "--repository", metavar="DIR", help="write a model repository there, a new folder, and serve nothing"
    )
    p.add_argument("--kind", choices=KINDS, default=KINDS[0], help="what runs the network (default python: the Engine)")
    p.add_argument("--instances", type=int, default=1, metavar="N", help="of the network, each a process (default 1)")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads of each (default: its share of every core)")
    p.add_argument("--trust", action="store_true", help=TRUST_HELP)
    p.add_argument("--host", metavar="ADDRESS", help="where to listen (default 127.0.0.1, this machine alone)")
    p.add_argument(
        "--http-port", type=int, metavar="PORT", help="default 8000; 0 takes any free one, as for the others"
    )
    p.add_argument("--grpc-port", type=int, metavar="PORT", help="default 8001")
    p.add_argument("--metrics-port", type=int, metavar="PORT", help="default 8002")
    p.add_argument("--python", metavar="PATH", help="of an environment with tkfnet-engine[serve] (default: this one)")
    p.add_argument(
        "--direct", action="store_true", default=None, help="without nginx: 127.0.0.1 only, bodies unlimited"
    )
    p.add_argument("--check-seconds", type=float, metavar="S", help="between two checks of its answers (default 30)")
    p.add_argument("--start-seconds", type=float, metavar="S", help="for the server to get ready (default 300)")
    p.add_argument("--json", action="store_true", help="where it serves, or what was written, on standard output")
    for name, (kind, unit, what) in _LIMITS.items():
        default = getattr(Limits, name.replace("-", "_"))
        p.add_argument(f"--{name}", type=kind, default=default, metavar=unit, help=f"{what} (default {default:g})")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    limits = Limits(**{name: getattr(args, name) for name in (flag.replace("-", "_") for flag in _LIMITS)})
    options = Options(args.kind, args.instances, args.threads, args.trust, limits)
    if args.repository is None:
        return _serve(args, options)
    if given := [f"--{name.replace('_', '-')}" for name in _LOCAL if getattr(args, name) is not None]:
        raise UsageError(f"{', '.join(given)}: got --repository as well, which serves nothing; leave one of them out")
    names = write_repository(args.repository, args.engines, options)
    folder = os.path.abspath(args.repository)
    say(f"wrote {', '.join(names)}; serve with tritonserver --model-repository={shlex.quote(folder)}")
    if args.json:
        emit_json({"repository": folder, "models": names})
    return 0


def _serve(args: Any, options: Options) -> int:
    # Late, as nothing here is needed to write a repository, on any system.
    from .serving import canary
    from .serving.environment import find_environment
    from .serving.front import find_nginx
    from .serving.supervisor import Plan, serve

    if options.kind != "python":
        raise UsageError(
            f"--kind: got {options.kind}, expected python: the package's server has that backend alone; write a "
            "--repository for another"
        )
    # Until the server runs, SIGTERM ends as Ctrl-C does: temporary files go.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    host = _checked_host(args)
    environment = find_environment(args.python)
    if not args.direct:
        find_nginx()
    public = _public_ports(host, (args.http_port, args.grpc_port, args.metrics_port))
    with tempfile.TemporaryDirectory(prefix="tkfnet-models-", ignore_cleanup_errors=True) as folder:
        repository = os.path.join(folder, "models")
        names = write_repository(repository, args.engines, options)
        engines = [os.path.join(repository, name, "1", "engine.tkf") for name in names]
        known = dict(zip(names, canary.expected(environment, engines, options.threads, options.trusted), strict=True))
        plan = Plan(
            environment,
            repository,
            known,
            public,
            host,
            bool(args.direct),
            options.limits,
            _positive("check-seconds", args.check_seconds, 30.0),
            _positive("start-seconds", args.start_seconds, 300.0),
        )

        def ready() -> None:
            if args.direct:
                say("direct: nothing limits the size of bodies or the number of connections; keep it to this machine")
            where = f"http {host}:{public.http}, grpc {host}:{public.grpc}, metrics {host}:{public.metrics}/metrics"
            say(f"ready: {where}; models {', '.join(names)}")
            if args.json:
                ports = {"http": public.http, "grpc": public.grpc, "metrics": public.metrics}
                emit_json({"host": host, "ports": ports, "models": names})

        return serve(plan, ready)


def _checked_host(args: Any) -> str:
    host = args.host or "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise UsageError(f"--host: got {host!r}, expected an IP address such as 127.0.0.1 or 0.0.0.0") from None
    if args.direct and str(address) != "127.0.0.1":
        raise UsageError(
            f"--direct: got --host {host}, expected 127.0.0.1: what it leaves unlimited is for nobody else"
        )
    return str(address)


def _positive(name: str, value: float | None, default: float) -> float:
    value = default if value is None else value
    if not 0.05 <= value <= 86400:
        raise UsageError(f"--{name}: got {value:g}, expected 0.05 to 86400 seconds")
    return value


def _public_ports(host: str, wanted: Sequence[int | None]) -> Any:
    """Free ones where 0 was asked for. `UsageError` for one that is taken, before anything is started."""
    from .serving.process import Ports

    found: list[int] = []
    sockets = []
    try:
        for name, default, port in zip(("http", "grpc", "metrics"), (8000, 8001, 8002), wanted, strict=True):
            port = default if port is None else port
            if not 0 <= port <= 65535:
                raise UsageError(f"--{name}-port: got {port}, expected 0 to 65535")
            one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            sockets.append(one)
            # As nginx does: a port that was just left is free.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((host, port))
            except OSError as error:
                raise UsageError(
                    f"--{name}-port: cannot listen at {host}:{port}: {error.strerror}; give another"
                ) from None
            found.append(one.getsockname()[1])
        return Ports(*found)
    finally:
        for one in sockets:
            one.close()


if __name__ == "__main__":
    run_command(main)
