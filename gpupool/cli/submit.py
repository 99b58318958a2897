"""`gpupool submit`: reads specs, submits them, and with --wait stays until they have ended."""

from __future__ import annotations

import asyncio
import sys
from typing import NamedTuple

import click

from gpupool.client import Client
from gpupool.errors import GpupoolError, InvalidSpec
from gpupool.spec import MAX_BYTES, load_specs
from gpupool.v1 import job_pb2, scheduler_pb2

from .constraints import constrain, constraint_options
from .explaining import show as show_explanation
from .output import emit, examples, note, output_option
from .queue_options import Terms, jobs_of, queue_options
from .settings import connect, connection_options
from .waiting import wait_for

HUGEPAGES_KIB = {"2M": 2048, "1G": 1024 * 1024}


def parse_network(_: click.Context, __: click.Parameter, value: str | None) -> job_pb2.Network | None:
    """`user`, `bridge:br0`, `macvtap:eth0` or `none` as a message; whether the name makes sense the scheduler says."""
    if value is None:
        return None
    kind, _colon, source = value.partition(":")
    kinds = {name.lower().removeprefix("kind_"): number for name, number in job_pb2.Network.Kind.items()}
    kinds["none"] = kinds.pop("unspecified")
    if kind not in kinds:
        raise click.BadParameter(f"{value!r}: write one of {', '.join(kinds)}, with the host's side as bridge:br0")
    return job_pb2.Network(kind=kinds[kind], source=source)


class Named(NamedTuple):
    """A spec and where it was read, such as "job.yaml" or "job.yaml, job 2"."""

    source: str
    spec: job_pb2.JobSpec


@click.command(
    epilog=examples(
        "gpupool submit examples/hello.yaml --logs",
        "id=$(gpupool submit train.yaml --name train-7)",
        "gpupool submit --check *.yaml",
        "gpupool submit --dry-run train.yaml --within pcie-root",
        "gpupool submit train.yaml --hugepages 1G --network bridge:br0 --user-data init.yaml",
        "gpupool submit train.yaml --model nvidia-h100-80gb --model nvidia-a100-80gb --require zone=a",
    )
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--name", help="Instead of the name in the file.")
@click.option("--hugepages", type=click.Choice(list(HUGEPAGES_KIB)), help="Memory from pages of this size.")
@click.option("--network", callback=parse_network, metavar="KIND", help="user, bridge:NAME, macvtap:NAME or none.")
@click.option("--user-data", type=click.Path(dir_okay=False), metavar="FILE", help="Cloud-init user data.")
@queue_options
@click.option("--key", help="Idempotency key: submitting again with it gives the same job. For one job.")
@click.option("--check", is_flag=True, help="Have the scheduler check it; submit nothing.")
@click.option("--dry-run", is_flag=True, help="Say whether it would start now, or why it would wait; submit nothing.")
@click.option(
    "--allow-unavailable",
    "--wait-for-hosts",
    "allow_unavailable",
    is_flag=True,
    help="Queue it even if no known host could ever take it; it waits for one, with a warning.",
)
@click.option("--wait", is_flag=True, help="Stay until the end, and end with the guest's exit code.")
@click.option("--logs", "show_logs", is_flag=True, help="Print the guest's output while waiting; implies --wait.")
@constraint_options
@output_option("id", "json", "yaml")
@connection_options
def submit(
    *,
    files: tuple[str, ...],
    name: str | None,
    hugepages: str | None,
    network: job_pb2.Network | None,
    user_data: str | None,
    terms: Terms,
    key: str | None,
    check: bool,
    dry_run: bool,
    allow_unavailable: bool,
    wait: bool,
    show_logs: bool,
    output: str,
) -> None:
    """Submit the jobs in FILEs ("-": standard input), and print their ids.

    A file is YAML or JSON; several documents in it are several jobs. Options about a job stand for what each file says.
    --wait tells of each change on stderr. --dry-run says what `gpupool explain` would say of each job; its exit code is
    that of a submission. docs/jobs.md says what each field of a file means.
    """
    jobs = _read(files)
    seed = _read_user_data(user_data)
    if key is not None and len(jobs) != 1:
        raise click.UsageError(f"--key is for one job, and these are {len(jobs)}; without it each gets its own")
    if (check or dry_run) and (wait or show_logs):
        option = "--check" if check else "--dry-run"
        raise click.UsageError(f"{option} submits nothing, so there is nothing to wait for")
    for job in jobs:
        job.spec.name = job.spec.name if name is None else name
        if hugepages is not None:
            job.spec.vm.hugepage_size_kib = HUGEPAGES_KIB[hugepages]
        if network is not None:
            job.spec.vm.network.CopyFrom(network)
        if seed is not None:
            job.spec.vm.user_data = seed
        constrain(job.spec)
    if dry_run:
        raise click.exceptions.Exit(_explain_all(jobs, terms, output, allow=allow_unavailable))
    with connect() as client:
        for job in jobs:
            terms.apply(client, job.spec)
        answers, failure = _submit_all(client, jobs, key, check=check, allow=allow_unavailable)
    _tell(answers, output, check=check)
    if failure is not None:
        raise click.exceptions.Exit(failure)
    if wait or show_logs:
        sys.stdout.flush()
        ids = [job for answer, asked in zip(answers, jobs, strict=True) for job in jobs_of(answer.id, asked.spec)]
        raise click.exceptions.Exit(asyncio.run(wait_for(ids, show_logs=show_logs)))


def _read(files: tuple[str, ...]) -> list[Named]:
    """All specs of all files. Raises InvalidSpec with the faults of all files, so that one run shows them all."""
    jobs: list[Named] = []
    violations: list[str] = []
    for file in files:
        source = "standard input" if file == "-" else file
        try:
            with click.open_file(file, encoding="utf-8") as stream:
                specs = load_specs(stream.read(MAX_BYTES + 1))
        except InvalidSpec as error:
            violations += [f"{source}: {fault}" for fault in error.violations]
        except UnicodeDecodeError:
            violations.append(f"{source}: not text in UTF-8; is this the right file?")
        except OSError as error:
            violations.append(f"{source}: {error.strerror}")
        else:
            one = len(specs) == 1
            jobs += [Named(source if one else f"{source}, job {at}", spec) for at, spec in enumerate(specs, 1)]
    if violations:
        raise InvalidSpec(violations)
    return jobs


def _read_user_data(file: str | None) -> str | None:
    """The text of `file`. Raises InvalidSpec; how large it may be is the scheduler's word."""
    if file is None:
        return None
    try:
        with open(file, encoding="utf-8") as stream:
            return stream.read(MAX_BYTES + 1)
    except UnicodeDecodeError:
        raise InvalidSpec([f"{file}: not text in UTF-8; compressed user data is not taken"]) from None
    except OSError as error:
        raise InvalidSpec([f"{file}: {error.strerror}"]) from None


def _submit_all(
    client: Client, jobs: list[Named], key: str | None, *, check: bool, allow: bool
) -> tuple[list[scheduler_pb2.SubmitResponse], int | None]:
    """The answers, and the exit code of the first refusal if there was one. A refused job does not stop the others."""
    answers: list[scheduler_pb2.SubmitResponse] = []
    failure: int | None = None
    for source, spec in jobs:
        try:
            answer = client.submit(spec, key, validate_only=check, allow_unavailable=allow)
        except InvalidSpec as error:
            for fault in error.violations:
                click.echo(f"error: {source}: {fault}", err=True)
            failure = failure or error.exit_code
        except GpupoolError as error:
            # Whoever is told of the failure must also learn which jobs exist by now.
            click.echo(f"error: {source}: {error}", err=True)
            return answers, error.exit_code
        else:
            answers.append(answer)
            for warning in answer.warnings:
                note(f"warning: {source}: {warning}")
            if check:
                note(f"{source}: correct")
    return answers, failure


def _explain_all(jobs: list[Named], terms: Terms, output: str, *, allow: bool) -> int:
    """Say how each job would fare now; the exit code that submitting them would have."""
    found: list[scheduler_pb2.Explanation] = []
    failure = 0
    with connect() as client:
        for source, spec in jobs:
            terms.apply(client, spec)
            try:
                answer = client.explain_spec(spec)
            except InvalidSpec as error:
                for fault in error.violations:
                    click.echo(f"error: {source}: {fault}", err=True)
                failure = failure or error.exit_code
                continue
            found.append(answer)
            for why in answer.impossible:
                click.echo(f"{'warning' if allow else 'error'}: {source}: {why}", err=True)
            if answer.impossible and not allow:
                failure = failure or InvalidSpec.exit_code
            if output == "id":
                note(f"{source}:")
                show_explanation(answer, wide=False)
    if output != "id":
        emit(output, found)
    return failure


def _tell(answers: list[scheduler_pb2.SubmitResponse], output: str, *, check: bool) -> None:
    if output != "id":
        emit(output, answers)
    elif not check:
        for answer in answers:
            click.echo(answer.id)


COMMANDS = (submit,)
