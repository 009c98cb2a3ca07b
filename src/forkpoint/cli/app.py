"""The commands, put together."""

from typing import Annotated

import typer

from forkpoint import __version__
from forkpoint.cli.audit import audit
from forkpoint.cli.embed import embed
from forkpoint.cli.engines import engines
from forkpoint.cli.factors import factors
from forkpoint.cli.generate import generate
from forkpoint.cli.logprobs import logprobs
from forkpoint.cli.questions import COMMANDS, FIXES
from forkpoint.cli.replay import replay
from forkpoint.cli.report import report
from forkpoint.cli.script import script
from forkpoint.cli.sweep import sweep
from forkpoint.cli.traces import compare, record
from forkpoint.errors import InputError

app = typer.Typer(
    name="forkpoint",
    help="Find the first operation where two runs of a model part ways.",
    epilog="Exit status: 0 identical or rounding; 1 semantic, nondeterminism or inputs; 2 unusable arguments; "
    "3 undetermined.",
    pretty_exceptions_enable=False,
)
for _name, (_command, _example) in COMMANDS.items():
    app.command(_name, epilog=f"Example: {_example}")(_command)
fix = typer.Typer(
    name="fix",
    help="Ask a question as it is, and again layout-invariantly: is the difference gone?",
    epilog="Exit status: 0 identical the second time; 1 not; 2 unusable arguments, or no invariant form; 3 undetermined.",
)
for _name, (_command, _example) in FIXES.items():
    fix.command(_name, epilog=f"Example: {_example}")(_command)
app.add_typer(fix)
app.command(epilog="Example: forkpoint audit demo --longest 70 --invariant")(audit)
app.command(epilog="Example: forkpoint factors demo -p 'Hello there' --pad-to 50")(factors)
app.command(epilog="Example: forkpoint generate demo -p 'Hello there' --against no-cache")(generate)
app.command(epilog="Example: forkpoint embed ./my-model --texts texts.txt --batch-size 1,32")(embed)
app.command(epilog="Example: forkpoint engines ./my-model --against vllm -p 'Hello there'")(engines)
app.command(epilog="Example: forkpoint sweep sweep.toml --workers 2")(sweep)
app.command(epilog="Example: forkpoint replay scene")(replay)
app.command(epilog="Example: forkpoint script scene -o script.py")(script)
app.command(epilog="Example: forkpoint report result.json")(report)
app.command(
    epilog="Example: forkpoint record -o trace-a run.py --my-option",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)(record)
app.command(epilog="Example: forkpoint compare trace-a trace-b")(compare)
app.command(epilog="Example: forkpoint logprobs trainer.jsonl engine.jsonl")(logprobs)


@app.callback(invoke_without_command=True)
def _front(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"forkpoint {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise InputError("no command")
