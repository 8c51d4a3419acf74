"""The `mtrec` command: a thin shell over the chain, the bundle and the server.

Heavy imports happen inside commands, so `mtrec --help` is quick. Errors of ours end here as one to
three lines on stderr and an exit code; a traceback only with `--verbose`.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.exceptions import TyperException

from mtrec import __version__, artifacts, chain
from mtrec.config import Config, Serving
from mtrec.configfile import dump_config, load_config, parse_serving
from mtrec.errors import ConfigError, DataError, MtrecError
from mtrec.paths import Paths
from mtrec.runlog import configure_logging
from mtrec.stages import Outcome

app = typer.Typer(
    name="mtrec",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From raw interaction logs and text to recommendations, on a Ray cluster of any size.",
)
config_app = typer.Typer(no_args_is_help=True, help="Check or show a run's configuration.")
bundle_app = typer.Typer(no_args_is_help=True, help="Show, verify or revise a bundle.")
app.add_typer(config_app, name="config")
app.add_typer(bundle_app, name="bundle")

DEMO_CONFIG = "jobs/configs/movielens.yaml"
_INTERRUPTED = 130

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The run's YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key, e.g. train.epochs=3."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(help="Address of a Ray cluster; default: RAY_ADDRESS, else a local Ray."),
]
Ingress = Literal["python", "haproxy"]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="More log lines, tracebacks.")]


def main() -> None:
    """Run the command line; the entry point of the package."""
    sys.exit(run_shell(lambda: app(standalone_mode=False), verbose="--verbose" in sys.argv))


def run_shell(command: Callable[[], object], *, verbose: bool = False) -> int:
    """Run a command, print errors of ours in a line or three, and give the exit code.

    0 done, 1 anything unexpected, 2 configuration or usage, 3 data, 4 artifact, 130 Ctrl-C.
    """
    try:
        result = command()
        if result == _INTERRUPTED:  # what Typer makes of a Ctrl-C
            return _interrupted()
        return result if isinstance(result, int) else 0
    except MtrecError as error:
        if verbose:
            raise
        print(f"mtrec: {error}", file=sys.stderr)
        return error.exit_code
    except typer.Exit as error:
        return error.exit_code
    except TyperException as error:  # wrong usage: a missing option, an unknown command
        # Typer keeps the class that can show itself private.
        show = getattr(error, "show", None)
        if show is None:
            print(f"mtrec: {error}", file=sys.stderr)
        else:
            show()
        return ConfigError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as error:
        if verbose:
            raise
        lines = str(error).strip().splitlines() or [""]
        print(f"mtrec: unexpected {type(error).__name__}: {lines[0]:.300}", file=sys.stderr)
        print("run again with --verbose for the traceback", file=sys.stderr)
        return 1


def _interrupted() -> int:
    print("mtrec: interrupted; what was finished is kept, run again to go on", file=sys.stderr)
    return _INTERRUPTED


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def _stages(
    config: Path,
    overrides: list[str] | None,
    address: str | None,
    verbose: bool,
    *names: str,
    twins: bool = False,
) -> tuple[Config, Outcome]:
    configure_logging(verbose=verbose)
    loaded = load_config(config, overrides or [])
    outcome = chain.run(loaded, address=address, stages=names or None, twins=twins)
    for name in outcome.skipped:
        print(f"{name}: up to date, nothing to do")
    for name, seconds in outcome.done.items():
        print(f"{name}: done in {seconds:.0f} s")
    return loaded, outcome


@app.command()
def run(
    config: ConfigOption,
    overrides: SetOption = None,
    address: AddressOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Prepare, embed, train, evaluate and score; skip what is done and still valid."""
    _, outcome = _stages(config, overrides, address, verbose)
    _print_report(outcome.paths)
    print(f"predictions: {outcome.paths.predictions}")
    print(f"serve it: mtrec serve --bundle {outcome.paths.bundles} -c {config}")


def _add_stage(name: str, text: str) -> None:
    def command(
        config: ConfigOption,
        overrides: SetOption = None,
        address: AddressOption = None,
        verbose: VerboseOption = False,
    ) -> None:
        _stages(config, overrides, address, verbose, name)

    app.command(name, help=text)(command)


_add_stage("prepare", "Read, check, clean and split the raw tables into a dataset.")
_add_stage(
    "embed", "Turn the dataset's texts into vectors; texts embedded before are not done again."
)
_add_stage("train", "Fit the model on the dataset and leave a bundle.")


@app.command()
def evaluate(
    config: ConfigOption,
    twins: Annotated[
        bool,
        typer.Option(
            "--twins",
            help="Also train each task alone and report what joint training gave or took; fails "
            "where a task loses more than evaluate.max_harm.",
        ),
    ] = False,
    overrides: SetOption = None,
    address: AddressOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Judge the bundle on held-out events beside the baselines; leave a report."""
    _, outcome = _stages(config, overrides, address, verbose, "evaluate", twins=twins)
    _print_report(outcome.paths)
    if twins:
        _print_twins(outcome.paths)


_add_stage("score", "Write every user's best items as Parquet.")


@app.command()
def demo(
    workdir: Annotated[str, typer.Option(help="Where the run's artifacts go.")] = "runs/demo",
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="A copy of MovieLens-100K; default: fetch it.")
    ] = None,
    no_serve: Annotated[bool, typer.Option("--no-serve", help="End after the report.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the endpoint.")] = 8000,
    config: Annotated[Path, typer.Option(help="The demo's YAML file.")] = Path(DEMO_CONFIG),
    overrides: SetOption = None,
    address: AddressOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Run the whole chain on MovieLens-100K and leave the endpoint up until Ctrl-C."""
    settings = [f"run.workdir={json.dumps(workdir)}", *(overrides or [])]
    if data is not None:
        settings.append(f"data.root={json.dumps(data)}")
    if not no_serve:
        from mtrec.serve.ingress import check_port

        check_port("127.0.0.1", port)  # now, not after the training
    if not config.is_file():
        raise ConfigError(
            f"cannot find {config}, which is the demo\n"
            "run this in a checkout of mtrec, or name the file with --config"
        )
    loaded, outcome = _stages(config, settings, address, verbose)
    _print_report(outcome.paths)
    if not no_serve:
        _serve(outcome.paths.bundles, loaded, address, host="127.0.0.1", port=port)


@app.command()
def serve(
    bundle: Annotated[str, typer.Option(help="A version's folder, or bundles/ for the newest.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="For its serve section.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on.")] = None,
    ingress: Annotated[
        Ingress | None,
        typer.Option(
            help="What takes requests in: Ray Serve's Python proxy, or HAProxy, about six times as "
            "fast; it also opens ports 9101 and 8404 (metrics, statistics) on all interfaces."
        ),
    ] = None,
    overrides: SetOption = None,
    address: AddressOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Answer over HTTP until Ctrl-C."""
    configure_logging(verbose=verbose)
    settings = overrides or []
    loaded = parse_serving(settings) if config is None else load_config(config, settings)
    _serve(bundle, loaded, address, host=host, port=port, ingress=ingress)


def _serve(bundle: str, config: Config | Serving, address: str | None, **changes: Any) -> None:
    from mtrec.serve.ingress import choose

    settings = config.serve.model_copy(
        update={name: value for name, value in changes.items() if value is not None}
    )
    _verify(bundle)  # a wrong folder or a damaged file is told before Ray is started
    # Before Ray starts, and before ray.serve is imported.
    choose(
        settings.ingress, is_local=(address or os.environ.get("RAY_ADDRESS", "local")) == "local"
    )

    from mtrec.rayrun import connect
    from mtrec.serve.app import ServeArgs, serve_until_interrupt

    connect(config.ray, address)
    serve_until_interrupt(ServeArgs.from_config(bundle, settings), _announce)


def _announce(url: str) -> None:
    print(f"endpoint: {url} (Ctrl-C ends it)", flush=True)


@config_app.command("check")
def config_check(
    config: ConfigOption, overrides: SetOption = None, verbose: VerboseOption = False
) -> None:
    """Check a configuration without running anything."""
    configure_logging(verbose=verbose)
    load_config(config, overrides or [])
    print(f"{config}: ok; `mtrec doctor -c {config}` also looks for its data")


@config_app.command("show")
def config_show(
    config: ConfigOption, overrides: SetOption = None, verbose: VerboseOption = False
) -> None:
    """Print the resolved configuration, every default filled in."""
    configure_logging(verbose=verbose)
    print(dump_config(load_config(config, overrides or [])), end="")


@bundle_app.command("show")
def bundle_show(
    path: Annotated[str, typer.Argument(help="A version's folder, or bundles/.")],
    verbose: VerboseOption = False,
) -> None:
    """Print what a bundle holds, as JSON."""
    configure_logging(verbose=verbose)
    from mtrec.recommender import Recommender

    print(json.dumps(Recommender.load(path).info(), indent=2, ensure_ascii=False))


@bundle_app.command("verify")
def bundle_verify(
    path: Annotated[str, typer.Argument(help="A version's folder, or bundles/.")],
    verbose: VerboseOption = False,
) -> None:
    """Check every file of a bundle against its manifest."""
    configure_logging(verbose=verbose)
    place, files = _verify(path)
    print(f"{place}: ok, {files} files")


@bundle_app.command("add-items")
def bundle_add_items(
    path: Annotated[str, typer.Argument(help="A version's folder, or bundles/ for the newest.")],
    items: Annotated[str, typer.Option(help="CSV, JSONL or Parquet, like the items table.")],
    verbose: VerboseOption = False,
) -> None:
    """Make a version that also recommends new items, by their text and columns; no training."""
    configure_logging(verbose=verbose)
    from mtrec.revise import add_items

    done = add_items(path, items)
    if done.left:
        print(f"{len(done.left)} items are in the bundle already; they stay as they are")
    for column, count in done.unknown.items():
        print(f"{column}: {count} items have values that training never saw; they tell nothing")
    _print_revised(done.version, f"{done.changed} items added")


@bundle_app.command("remove-users")
def bundle_remove_users(
    path: Annotated[str, typer.Argument(help="A version's folder, or bundles/ for the newest.")],
    users: Annotated[Path, typer.Option(help="A text file with one user id a line.")],
    verbose: VerboseOption = False,
) -> None:
    """Make a version that knows nothing of some users; earlier versions stay, remove them too."""
    configure_logging(verbose=verbose)
    from mtrec.revise import remove_users

    try:
        # Ids are kept byte by byte: only line ends go, of whichever system.
        lines = users.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {users}: {error}\nexpected one user id a line") from error
    done = remove_users(path, [line for line in lines if line.strip()])
    if done.left:
        print(f"{len(done.left)} users are not in the bundle, such as {done.left[0]!r}")
    _print_revised(done.version, f"{done.changed} users removed")


def _print_revised(version: str | None, what: str) -> None:
    print(f"version {version}: {what}" if version else "nothing to do: no new version")


def _verify(path: str) -> tuple[str, int]:
    """Check every file of a bundle; give its folder and the number of its files."""
    from mtrec import storage
    from mtrec.versions import find_bundle

    with storage.explained("read the bundle", path):
        place = find_bundle(path)
        manifest = artifacts.read_manifest(place, "bundle")
        artifacts.verify(place, manifest, hashes=True)
    return place, len(manifest.files)


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A run, for its workdir and its ports.")
    ] = None,
    overrides: SetOption = None,
    address: AddressOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Look at versions, CPUs, GPUs, storage, ports, authentication; name remedies for problems."""
    from mtrec.doctor import examine

    configure_logging(verbose=verbose)
    loaded = load_config(config, overrides or []) if config is not None else None
    problems = 0
    for check in examine(address, loaded):
        problems += not check.ok
        print(f"{'ok     ' if check.ok else 'problem'} {check.name}: {check.found}")
        if check.remedy:
            print(f"        {check.remedy}")
    raise typer.Exit(1 if problems else 0)


def _print_twins(paths: Paths) -> None:
    """Print what joint training gave or took, then let it pass the gate or not."""
    from mtrec import storage
    from mtrec.harm import check_harm, twins_table

    path = storage.join(paths.twins, "twins.json")
    with storage.explained("read the comparison with twins", paths.workdir):
        tree = storage.read_json(path)
    print(f"\n{twins_table(tree)}")
    print(f"twins: {storage.join(paths.twins, 'twins.html')}", flush=True)
    check_harm(tree)


def _print_report(paths: Paths) -> None:
    from mtrec import storage
    from mtrec.report_text import summary_table

    path = storage.join(paths.report, "report.json")
    with storage.explained("read the report", paths.workdir):
        report = storage.read_json(path)
    print(summary_table(report))
    print(f"report: {storage.join(paths.report, 'report.html')}")
