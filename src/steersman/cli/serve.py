"""`steersman serve`: answer over HTTP, steered request by request."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steersman.cli.console import DeviceOption, DtypeOption, ModelOption, load, profile, status

if TYPE_CHECKING:
    from steersman.engine.engine import Engine
    from steersman.server.settings import ServerSettings


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")] = 8765,
    model: ModelOption = "default",
    database: Annotated[
        str | None,
        typer.Option(
            help="postgresql://user:password@host/name or sqlite:////full/path.db; by default a file in the folder."
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where recipes, sets and jobs are kept; by default `server` in the cache.")
    ] = None,
    steering: Annotated[
        Path | None,
        typer.Option(help="Recipe file or trait that steers every answer, unless a request says otherwise."),
    ] = None,
    routes: Annotated[
        Path | None, typer.Option(help="Table (TOML) that chooses the steering by what a prompt says.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens that one answer may have.")] = 1024,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are told to come back.")] = 64,
    slots: Annotated[int, typer.Option(min=1, help="Requests that run at once, in one batch.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Jobs that run at once; 0 leaves them to other servers.")] = 1,
    keep_jobs: Annotated[
        float, typer.Option(min=0, help="Days that ended jobs are kept (what they made stays); 0 is for ever.")
    ] = 30.0,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests a minute and key.")] = 600.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that an answer may take to begin.")] = 300.0,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that running answers may go on after a signal to end.")
    ] = 30.0,
    require_keys: Annotated[
        bool | None,
        typer.Option(
            "--require-keys/--no-require-keys", help="By default keys are required as soon as there is a valid one."
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Web pages of this origin may call; may be repeated. By default none.")
    ] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write what was sent into the log.")] = False,
    json_logs: Annotated[
        bool | None,
        typer.Option("--json-logs/--no-json-logs", help="One JSON line a request; by default off a terminal."),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Serve the steering API and OpenAI's protocol until Ctrl-C."""
    with status("starting"):
        from steersman.server.logs import to_stderr
        from steersman.server.parts import open_engine
        from steersman.server.run import serve as run
        from steersman.server.settings import ServerSettings
        from steersman.settings import Settings

    settings = ServerSettings(
        folder=(folder or Settings.from_env().cache / "server").expanduser(),
        host=host,
        port=port,
        model=model,
        device=device,
        dtype=dtype,
        database=database,
        require_keys=require_keys,
        allowed_origins=tuple(allow_origin or ()),
        max_tokens=max_tokens,
        slots=slots,
        max_queue=max_queue,
        request_timeout_s=timeout,
        rate_per_minute=rate,
        job_workers=workers,
        keep_jobs_days=keep_jobs,
        steering=steering,
        routes=routes,
        log_prompts=log_prompts,
        grace_s=grace,
    )

    def made() -> Engine:
        language_model = load(model, device, dtype)
        profile(language_model)
        return open_engine(settings, language_model)

    as_json = not sys.stderr.isatty() if json_logs is None else json_logs
    with to_stderr(as_json=as_json):
        still_computes = run(settings, made, on_ready=_log_ready if as_json else _print_ready)
    if still_computes:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _log_ready(settings: ServerSettings) -> None:
    """One line for whoever started it: the address, the model, and where things are."""
    facts = {"address": settings.address, "model": settings.model, "kept_in": settings.kept_in}
    logging.getLogger("steersman.server").info("ready", extra=facts)


def _print_ready(settings: ServerSettings) -> None:
    """The address, a request to try, and where things are."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    console.print(Text.assemble("steersman answers at ", (settings.address, "bold green"), " (Ctrl-C ends it)\n"))
    console.print(Text(_example(settings)))
    keys = (
        "required; `steersman keys create` makes one" if settings.require_keys else "none; only this machine can call"
    )
    console.print(Text(f"\nkeys      {keys}\ndatabase  {settings.kept_in}\nfiles     {settings.folder}\n", style="dim"))


def _example(settings: ServerSettings) -> str:
    """A curl command that answers, steered where a trait ships for the model."""
    from steersman.steering.traits import names

    body: dict[str, Any] = {"model": "default", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
    traits = names() if settings.model == "default" else ()
    if traits:
        body["steering"] = {"traits": {"pirate" if "pirate" in traits else traits[0]: 1.0}}
    key = ' -H "Authorization: Bearer $STEERSMAN_KEY"' if settings.require_keys else ""
    data = shlex.quote(json.dumps(body))
    return f"curl {settings.address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {data}"
