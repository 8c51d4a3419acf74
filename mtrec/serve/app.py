"""The endpoint on Ray Serve: one autoscaling deployment around one `Recommender` a replica.

`build` is what `serveConfigV2` names; `serve_bundle` is what `mtrec serve` and `mtrec demo` call.
Everything about HTTP is in `routes`; here is only where it runs, how many of it, and how it stops.
The API key is read from the environment of each replica when it starts.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Self

from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.config import (
    AutoscalingConfig,
    BackpressureConfig,
    ControllerOptions,
    HTTPOptions,
)
from starlette.types import ASGIApp

from mtrec import storage
from mtrec.config import ServeConfig
from mtrec.errors import ConfigError, MtrecError
from mtrec.query import Limits as QueryLimits
from mtrec.rayrun import alive_nodes, call_on_nodes, node_name
from mtrec.recommender import Recommender
from mtrec.runlog import configure_logging, event
from mtrec.serve import door
from mtrec.serve.host import ModelHost, Servable
from mtrec.serve.ingress import check_host, check_nodes, check_port, chosen
from mtrec.serve.routes import Limits, create_fastapi
from mtrec.serve.security import KEY_VARIABLE, RETRY_AFTER_S, read_key
from mtrec.serve.telemetry import Telemetry
from mtrec.versions import find_bundle

APP_NAME = "mtrec"

# A wrong bundle or a missing key is wrong on every try: say so soon.
_CONSTRUCTOR_TRIES = 2
# Serve averages the load over this long before it decides; it wants more than the 10 s between
# reports of the load.
_LOOK_BACK_S = 15.0
# With every check a replica tells its metrics which bundle it has; Ray exports every 10 s.
_HEALTH_S = 5.0
_ASK_S = 2.0
_log = logging.getLogger("mtrec.serve")


class ServeArgs(ServeConfig):
    """What `build` takes: `args:` of an application in `serveConfigV2`.

    `host` and `port` are those of the whole cluster's proxies; `build` leaves them alone.
    """

    bundle: str = Field(min_length=1)
    """A version's folder or URI, or what points to one and is followed: `bundles/`, or a file."""
    require_key: bool = False
    """Refuse to start where `MTREC_API_KEY` is not set."""

    @classmethod
    def from_config(cls, bundle: str, config: ServeConfig) -> Self:
        """Serve a bundle the way a run's configuration says."""
        return cls(bundle=bundle, **config.model_dump())


@serve.ingress()
class Endpoint:
    """One replica: loads the bundle, then answers; see `routes`."""

    def __init__(self, args: ServeArgs) -> None:
        # Behind HAProxy, Ray Serve has put a buffer of a thousand lines in the place of stderr.
        configure_logging(as_json=args.log_format == "json", stream=sys.__stderr__)
        key = read_key()
        if args.require_key and not key:
            raise ConfigError(
                f"{KEY_VARIABLE} is not set where replicas run, but require_key is true\n"
                "set it on every node before Ray starts there"
            )
        threads = max(1, int(args.num_cpus))
        query_limits = QueryLimits(max_k=args.max_k, max_history=args.max_history)

        def load(path: str) -> Servable:
            return Recommender.load(path, threads=threads, limits=query_limits)

        self._host = ModelHost(load, Telemetry())
        self._host.open(args.bundle)
        self._bundle = args.bundle
        if args.follow_s:
            self._host.follow(_find, args.follow_s)
        self._key, self._access_log = key, args.access_log
        self._limits = Limits(args.max_body_bytes, args.max_batch, args.max_k)

    def __serve_build_asgi_app__(self) -> ASGIApp:  # Ray Serve's name
        """Give the application that Serve sends requests to; called once, after `__init__`."""
        return create_fastapi(
            self._host,
            self._limits,
            api_key=self._key,
            access_log=self._access_log,
            names_request=False,
        )

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """Change to the bundle that `user_config` names; a bad one is refused, the old one stays.

        Serve calls this when a deployment's `user_config` changes, without a restart, and once at
        the start.
        """
        bundle = user_config.get("bundle", self._bundle)
        if bundle != self._bundle:
            self._bundle = bundle
            await self._host.swap(bundle)

    def state(self) -> tuple[str, str | None]:
        """Tell the version that answers, and why the last one that was offered does not."""
        return self._host.require().version, self._host.refused

    def check_health(self) -> None:
        """Tell Serve that this replica can answer; it is restarted if this raises."""
        self._host.tell()


def _find(path: str) -> str:
    with storage.explained("look for the newest bundle", path):
        return find_bundle(path)


def build(args: ServeArgs) -> Application:
    """Give the application that serves a bundle, for `serve run` and `serveConfigV2`."""
    actor: dict[str, object] = {"num_cpus": args.num_cpus}
    ongoing = args.max_ongoing_requests
    if chosen() == "haproxy":
        # Replicas are the servers: who waits does so behind the door, for the model's next pass.
        variables = door.variables(ongoing, args.max_queued_requests)
        actor["runtime_env"] = {"env_vars": variables}
        ongoing += args.max_queued_requests
    deployment = serve.deployment(
        Endpoint,
        name="Endpoint",
        ray_actor_options=actor,
        max_ongoing_requests=ongoing,
        max_queued_requests=args.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        autoscaling_config=AutoscalingConfig(
            min_replicas=args.min_replicas,
            initial_replicas=args.min_replicas,
            max_replicas=args.max_replicas,
            target_ongoing_requests=args.target_ongoing_requests,
            upscale_delay_s=args.upscale_delay_s,
            downscale_delay_s=args.downscale_delay_s,
            look_back_period_s=_LOOK_BACK_S,
        ),
        max_constructor_retry_count=_CONSTRUCTOR_TRIES,
        health_check_period_s=_HEALTH_S,
    )
    application: Application = deployment.bind(args)  # type: ignore[attr-defined]  # Ray's overloads
    return application


def serve_bundle(args: ServeArgs, *, wait_s: float = 120.0) -> str:
    """Start Ray Serve on `args.host` and `args.port`, deploy a bundle and give the URL.

    Ray must be connected. Comes back when the endpoint is ready; `stop_serving` ends it.

    Args:
        args: what to serve and how.
        wait_s: how long the endpoint may take to get ready, in seconds.

    Raises:
        ConfigError: the port is taken, Ray Serve runs on this cluster already, or Ray was started
            for another ingress.
        ArtifactError: there is no bundle.
        MtrecError: the endpoint did not get ready.
    """
    check_port(args.host, args.port)
    changes: dict[str, object] = {"require_key": read_key() is not None}
    if storage.is_local(args.bundle):
        # Replicas need not have this process's working directory.
        changes["bundle"] = os.path.abspath(storage.filesystem(args.bundle)[1])
    args = args.model_copy(update=changes)
    find_bundle(args.bundle)
    if args.ingress == "haproxy":
        check_host(args.host, len(alive_nodes()))
        nodes = {node["NodeID"]: node_name(node) for node in alive_nodes()}
        there = call_on_nodes(chosen, alive_nodes())
        check_nodes(args.ingress, {nodes[node]: ingress for node, ingress in there.items()})
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if serve.status().proxies:
        # Its host and port cannot be changed, and stopping it would end what others serve.
        raise ConfigError(
            "Ray Serve already runs on this cluster, so its host and port are given\n"
            "end it with `serve shutdown`, or deploy mtrec.serve.app:build with `serve run`"
        )
    options = HTTPOptions(host=args.host, port=args.port, request_timeout_s=args.request_timeout_s)
    try:
        # A busy machine takes longer for the proxy than Ray's minute; `_wait_ready` waits for it.
        with contextlib.suppress(TimeoutError):
            serve.start(http_options=options, controller_options=_proxy_options(args))
        serve.run(build(args), name=APP_NAME, route_prefix="/")
        url = f"http://{_reachable(args.host)}:{args.port}"
        _wait_ready(url, wait_s)
    except RuntimeError as error:
        told = [*_deployment_messages(), str(error)]
        stop_serving()
        raise MtrecError(f"the endpoint did not start: {_cause(told)}") from error
    except BaseException:
        stop_serving()
        raise
    return url


def _proxy_options(args: ServeArgs) -> ControllerOptions:
    """Give the Python proxy, which has the controller's environment, its door."""
    if chosen() == "haproxy":
        return ControllerOptions()
    limit = args.max_replicas * args.max_ongoing_requests
    return ControllerOptions(runtime_env={"env_vars": door.variables(limit)})


def stop_serving() -> None:
    """End the endpoint and Ray Serve; requests under way are answered first."""
    serve.shutdown()  # type: ignore[no-untyped-call]  # Ray's


def serve_until_interrupt(args: ServeArgs, announce: Callable[[str], None]) -> None:
    """Serve a bundle until Ctrl-C or SIGTERM, then end cleanly.

    Args:
        args: what to serve and how.
        announce: called with the URL once the endpoint is ready.

    Raises:
        ConfigError: the port is taken.
        ArtifactError: there is no bundle.
        MtrecError: the endpoint did not get ready.
    """
    stopped, is_starting = threading.Event(), True

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        if is_starting:
            raise KeyboardInterrupt
        stopped.set()

    event(_log, "serve.start", note="Ray Serve takes half a minute or so")
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        url = serve_bundle(args)
    except BaseException:
        for number, handler in previous.items():
            signal.signal(number, handler)
        raise
    is_starting = False
    reporter, looked = Reporter(), time.monotonic()
    try:
        announce(url)
        # A wait without end would not let Python run the handler on every platform.
        while not stopped.wait(0.5):
            if args.follow_s and time.monotonic() - looked > max(args.follow_s, 1.0):
                reporter.look()
                looked = time.monotonic()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        # What Ray says of the reporter's handle, which ends with the rest, helps nobody.
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        stop_serving()
        reporter.close()


State = tuple[str, str | None]


class Reporter:
    """Log which bundles replicas take or refuse, for who sits at the terminal of `mtrec serve`.

    Replicas' own logs are files of Ray's, maybe on other nodes. Close it when done.
    """

    def __init__(self) -> None:
        # Behind HAProxy, handles of Ray Serve want one loop that runs for as long as they are used.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="reporter", daemon=True)
        self._thread.start()
        self._before = self.state()

    def state(self) -> State | None:
        """Ask a replica which version answers and what it refused; None: it has no time."""

        async def ask() -> State:
            found: State = await serve.get_app_handle(APP_NAME).state.remote()
            return found

        try:
            return asyncio.run_coroutine_threadsafe(ask(), self._loop).result(_ASK_S)
        except Exception:  # it is asked again soon
            return None

    def look(self) -> None:
        """Log what has changed since the last look."""
        before, now = self._before, self.state()
        if now is None or now == before:
            return
        self._before = now
        version, refused = now
        if refused is not None and (before is None or refused != before[1]):
            _log.error("bundle.refused serving=%s: %s", version, refused)
        if before is not None and version != before[0]:
            event(_log, "bundle.serving", version=version, replaced=before[0])

    def close(self) -> None:
        """End the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


def _wait_ready(url: str, wait_s: float) -> None:
    """Ask `/readyz` until it says ready."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5.0) as response:
                if json.load(response)["status"] == "ready":
                    return
        except (OSError, ValueError, KeyError) as error:
            if time.monotonic() > deadline:
                raise MtrecError(
                    f"{url}/readyz does not say ready after {wait_s:g} s: {error}\n"
                    "`serve status` and Ray's logs say what the replicas wait for"
                ) from error
        time.sleep(0.1)


def _reachable(host: str) -> str:
    """Give the name under which a server that listens on `host` is asked from this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{name}]" if ":" in name else name


def _deployment_messages() -> list[str]:
    """Give what Serve says of the deployments, such as why a replica does not start."""
    application = serve.status().applications.get(APP_NAME)
    return [part.message for part in application.deployments.values()] if application else []


def _cause(messages: Sequence[str]) -> str:
    """Take out of Serve's messages, which hold tracebacks, the line that names the error."""
    lines = [line.strip() for text in messages for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    # The outermost error of a replica is Ray's own; the innermost, told first, is what happened.
    ours = [line.partition(": ")[2] for line in errors if line.startswith("mtrec.errors.")]
    return (ours + errors + lines[-1:] + ["it gave no reason"])[0]
