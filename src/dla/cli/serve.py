"""Serve a model over HTTP, with a page for people at /. POST a photo's bytes to /v1/predict and get the record that
dla predict prints; /openapi.json describes every address. Standard output gets one line, the address, once the model
answers.

SIGTERM ends the service after the requests in work. SIGHUP loads the model and the token anew, without a gap, unless
standard input is a terminal.

Exit code 143 after SIGTERM, 130 after Ctrl-C; 2: wrong usage, or the port is in use; 3: the weights are missing or
damaged.

example:
  dla serve --model my-run/best
  curl --data-binary @cat.jpg http://127.0.0.1:8080/v1/predict
  dla serve --host 0.0.0.0 --token-file token --access-log json    # for other machines
"""

from __future__ import annotations

import logging
import sys
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING

from dla.cli.common import add_verbose_flag, load_network, log
from dla.cli.parser import MODEL_HELP, Parser, about
from dla.errors import import_optional, pip_line, printable, without_secrets
from dla.options import EngineOptions, PredictOptions, ServeOptions
from dla.types import DEFAULT_MODEL

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from dla.serving.service import Service

SWITCH_S = 0.001  # that a thread which parses a form may hold up the others; Python's own 5 ms add up in one request

METAVARS = {
    "name": "NAME", "host": "ADDRESS", "port": "N", "uds": "PATH", "root_path": "PATH", "proxy_headers": None,
    "token_file": "FILE", "max_batch": "N", "queue": "N", "decoders": "N", "max_body": "N", "max_megapixels": "N",
    "max_connections": "N", "receive_timeout": "S", "timeout": "S", "keep_alive": "S", "drain": "S", "grace": "S",
    "no_page": None, "no_metrics": None, "access_log": None,
}  # fmt: skip


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("serve", *about(__doc__), "[options]", config="--config")
    add_verbose_flag(parser)
    parser.flag("--model", default=DEFAULT_MODEL, metavar="MODEL", help=MODEL_HELP)
    parser.options(EngineOptions, device="D", engine="E", precision=None, threads="N")
    parser.options(PredictOptions, topk="K")
    parser.options(ServeOptions, **METAVARS)
    parser.flag("--allow-host", nargs="+", metavar="NAME", help="names in Host that are answered, besides IP "
                "addresses, localhost and --host")  # fmt: skip
    parser.flag("--cors", nargs="+", metavar="ORIGIN", help="origins whose pages may use the service, such as "
                "https://my.site")  # fmt: skip
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    parser = build_parser()
    args = parser.read(argv)
    if args.print_config:
        parser.print_options(args)
        return 0
    for package in ("starlette", "uvicorn", "httptools", "python_multipart"):
        import_optional(package, f"dla serve needs {package.replace('_', '-')}: {pip_line('serve')}")
    from dla.serving.listen import address_of, open_socket, run_service
    from dla.serving.served_model import load_served, model_name
    from dla.serving.service import Service

    options = _options(args)
    load = partial(load_served, args.model, partial(load_network, args, args.model, None), options)
    service = Service(options, options.name or model_name(args.model), load, args.topk)
    _warn(args, options, service)
    _log_to_stderr(args.quiet)
    sys.setswitchinterval(SWITCH_S)
    with open_socket(options) as listener:
        address = address_of(listener, options)
        run_service(service, listener, lambda: print(address, flush=True), may_reload=not sys.stdin.isatty())
    return 0


def _options(args: Namespace) -> ServeOptions:
    given = {f.name: args[f.name] for f in fields(ServeOptions) if f.name not in ("allow_host", "cors")}
    return ServeOptions(**given, allow_host=tuple(args.allow_host or ()), cors=tuple(args.cors or ()))


def _warn(args: Namespace, options: ServeOptions, service: Service) -> None:
    from dla.serving.guard import is_open_address

    if args.model == DEFAULT_MODEL:
        log(args, f"dla: {DEFAULT_MODEL} is for non-commercial research.")
    if options.uds is None and options.token_file is None and is_open_address(options.host):
        log(args, f"dla: any machine that reaches {options.host} may use this service. --token-file asks for a token")


class _Lines(logging.Formatter):
    """Messages as every command prints them; lines of the access log as they are."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.name == "dla.access" else printable(without_secrets(f"dla: {text}"), keep="\n")


def _log_to_stderr(quiet: bool) -> None:
    """Have messages and the access log on standard error; of uvicorn and python-multipart only errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(message)s"))
    for name, level in (
        ("dla.serving", logging.ERROR if quiet else logging.WARNING),
        ("dla.access", logging.INFO),
        ("uvicorn", logging.ERROR),
        ("python_multipart", logging.CRITICAL),
    ):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
