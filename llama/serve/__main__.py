"""Serve a model to OpenAI's clients, and a page to people: python -m llama.serve

    python -m llama.serve                                       # http://127.0.0.1:8000, for this machine alone
    python -m llama.serve --model qwen2.5-coder-0.5b-instruct --quantize int8
    python -m llama.serve --host 0.0.0.0 --api-key-file key.txt
    curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \\
         -d '{"messages": [{"role": "user", "content": "Hello!"}], "stream": true}'

`python generate.py --serve` is the same. Adapters in adapters/ are models of their own names.

Try: let `check` pass a host for all without a key; tests/test_serve.py (test_refuses_to_be_open_without_a_key) fails.
"""

import ipaddress
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch

    from llama.commands import flags
    from llama.runtime import cli
    from llama.runtime.ranges import MOST_TOKENS, Range, check_ranges
    from llama.runtime.terminal import say
    from llama.sampling import SamplingConfig


@dataclass(frozen=True)
class ServeFlags:
    """Where to serve, to whom, and how many at once."""

    host: Annotated[str, "address to listen at; 0.0.0.0 is every one of this machine, and needs a key"] = "127.0.0.1"
    port: Annotated[int, "port to listen at; 0 takes a free one", Range(0, 65_535)] = 8000
    api_key_file: Annotated[str, "file with the key that requests must bring"] = ""
    places: Annotated[int, "texts to write at once; keys and values of each take memory", Range(1, 4096)] = 32
    queue: Annotated[int, "requests that may wait; further ones are answered 429", Range(1, 100_000)] = 128
    prefill_chunk: Annotated[int, "tokens of prompts to read between two steps of all others",
                             Range(1, MOST_TOKENS)] = 512
    models: Annotated[int, "models in memory at once, adapters counted", Range(1, 64)] = 3
    max_new_tokens: Annotated[int, "end a text after N tokens, where the request says nothing",
                              Range(1, MOST_TOKENS)] = 512
    cache_dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16", "int8"],
                           "number format of keys and values that are remembered; auto is that of the computation"] = \
        "auto"

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def local(self) -> bool:
        """Whether this machine alone can reach it."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def check(serve_flags: ServeFlags) -> str:
    """The key, "" for none. Raises ValueError where anybody could come in."""
    if not serve_flags.api_key_file:
        if not serve_flags.local:
            raise ValueError(f"--host {serve_flags.host} lets other machines in; give --api-key-file FILE, with the "
                             "key that they must bring")
        return ""
    key = Path(serve_flags.api_key_file).read_text(encoding="utf-8").strip()
    if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{serve_flags.api_key_file} holds no key; write one of at least 8 letters and digits into "
                         "it, in one line")
    return key


def main(prog: str = "python -m llama.serve") -> None:
    parser = cli.Parser(
        prog, "Serve a model to OpenAI's clients, and a page to people.",
        most=("model", "adapter", "host", "port", "api-key-file", "places", "max-new-tokens", "quantize", "compile"),
        example="python -m llama.serve --port 8000")
    cli.add_flags(parser, ServeFlags)
    cli.add_flags(parser, SamplingConfig)
    cli.add_flags(parser, flags.ModelFlags, skip=("json",))
    arguments = parser.parse_args()
    serve_flags = cli.from_flags(ServeFlags, arguments)
    key = check(serve_flags)
    try:
        import uvicorn

        from llama.serve.api import Server, build_app
        from llama.serve.models import Models
        from llama.serve.openai_form import Wish
        from llama.serve.scheduler import Scheduler
    except ImportError as error:
        raise ValueError(f"serving needs the package {error.name}; install it, and what goes with it, with: pip "
                         "install fastapi uvicorn (or pip install '.[serve]' in the clone)") from None

    models = Models(cli.from_flags(flags.ModelFlags, arguments), keep=serve_flags.models)
    models.get("")
    cache_dtype = None if serve_flags.cache_dtype == "auto" else getattr(torch, serve_flags.cache_dtype)
    scheduler = Scheduler(places=serve_flags.places, queue=serve_flags.queue, chunk=serve_flags.prefill_chunk,
                          cache_dtype=cache_dtype)
    defaults = Wish(sampling=cli.from_flags(SamplingConfig, arguments), max_new_tokens=serve_flags.max_new_tokens)
    app = build_app(Server(models, scheduler, defaults, key, serve_flags.local))
    config = uvicorn.Config(app, host=serve_flags.host, port=serve_flags.port, log_level="warning", access_log=False,
                            server_header=False, timeout_graceful_shutdown=2)
    errors = logging.getLogger("uvicorn.error")
    try:
        errors.disabled = True                                      # what it says is said below
        listening = config.bind_socket()
    except SystemExit:
        raise ValueError(f"--port {serve_flags.port} of {serve_flags.host} cannot be listened at: another program may "
                         "do so; give another --port, or 0 for any that is free") from None
    finally:
        errors.disabled = False
    shown = f"[{serve_flags.host}]" if ":" in serve_flags.host else serve_flags.host

    class Front(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            address = f"http://{shown}:{listening.getsockname()[1]}"
            say(f"{models.default} at {address}, for OpenAI's clients below {address}/v1; Ctrl-C ends")

    try:
        Front(config).run(sockets=[listening])
    finally:
        scheduler.close()


if __name__ == "__main__":
    cli.run(main)
