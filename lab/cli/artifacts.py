"""Commands of the artifact store: build, bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lab import builds
from lab.cli.context import Context, become_root
from lab.labfile import ProviderName
from lab.output import Format, emit, table
from lab.store import bundle

bundle_app = typer.Typer(help="Carry the whole artifact store to another machine.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.command()(build)
    bundle_app.command("create")(bundle_create)
    bundle_app.command("load")(bundle_load)
    app.add_typer(bundle_app, name="bundle")


def build(
    context: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(help="Artifacts to build; if absent, all that a lab needs.")
    ] = None,
    provider: Annotated[
        ProviderName, typer.Option("--provider", help="What makes the nodes of that lab.")
    ] = "nspawn",
    check: Annotated[
        bool, typer.Option("--check", help="Hash every file of what is built against its manifest.")
    ] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove entries that this release does not use.")
    ] = False,
) -> None:
    """Build the artifacts that are not in the store yet."""
    become_root()
    options: Context = context.obj
    steps = options.steps(options.logs_of("store", "build"))
    with steps.step("artifacts", "Build or reuse the artifacts") as building:
        built = builds.build_all(steps, only=set(names) if names else None, provider=provider)
    if check:
        with steps.step("check", "Hash every file"):
            builds.verify(built)
    if clean:
        with steps.step("clean", "Remove what is not used") as step:
            step.change(builds.clean())
    rows = [
        {"name": name, "key": artifact.key, "path": str(artifact.path)} for name, artifact in built.items()
    ]
    if options.output is not Format.TABLE:
        emit({"changed": building.changed, "artifacts": rows}, options.output)
        return
    table(rows, ["name", "key", "path"])
    print(
        f"{building.changed} built."
        if building.changed
        else "Everything was there already; nothing to build."
    )


def bundle_create(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The bundle to write.")],
    names: Annotated[
        list[str] | None, typer.Argument(help="Artifacts beside those that every lab of the provider needs.")
    ] = None,
    provider: Annotated[
        ProviderName, typer.Option("--provider", help="What makes the nodes of the labs that it is for.")
    ] = "nspawn",
) -> None:
    """Write all artifacts that labs of a provider need into one file."""
    become_root()
    options: Context = context.obj
    steps = options.steps(options.logs_of("store", "bundle"))
    with steps.step("artifacts", "Build or reuse the artifacts"):
        artifacts = builds.build_all(steps, also=names or (), for_bundle=True, provider=provider)
    with steps.step("bundle", f"Write {file}"):
        bundle.create(file, list(artifacts.values()))
    _show(options, list(artifacts), file, "wrote")


def bundle_load(
    context: typer.Context, file: Annotated[Path, typer.Argument(help="The bundle to read.")]
) -> None:
    """Put the artifacts of a bundle into the store; each file's hash is checked first."""
    become_root()
    options: Context = context.obj
    steps = options.steps(options.logs_of("store", "bundle"))
    with steps.step("bundle", f"Load {file}"):
        loaded = bundle.load(file)
    _show(options, [artifact.name for artifact in loaded], file, "loaded")


def _show(options: Context, names: list[str], file: Path, verb: str) -> None:
    if options.output is Format.TABLE:
        print(f"{verb} {file}: {', '.join(names)}; next: lab up")
    else:
        emit({"file": str(file), "artifacts": names}, options.output)
