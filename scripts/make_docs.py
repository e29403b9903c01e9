"""Write the generated parts of the documentation from the code: commands, routes, problems, slot transitions.

A generated part stands between two marker lines of a page in `docs/`; everything else is written by hand.

    python scripts/make_docs.py            # rewrite what is out of date
    python scripts/make_docs.py --check    # change nothing; exit code 1 when a part is out of date
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tinylcm.cli import make_parser as tinylcm_parser
from tinylcm.errors import ModelError
from tinylcm.preprocess import describe_ops
from tinylcm.slots import TRANSITIONS, Event, Held, Slot, State, step
from tinysphere.app import ROUTES
from tinysphere.cli import make_parser as tinysphere_parser
from tinysphere.client import Client
from tinysphere.errors import PROBLEMS

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
# Said once for all commands, by hand, at the top of cli.md.
COMMON: Final = frozenset({"--help", "--json", "--debug", "--config"})
CONNECTION: Final = frozenset({"--server", "--token", "--ca-file", "--insecure"})
_MARKED: Final = "<!-- generated: {name} -->\n{body}<!-- end: {name} -->"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that does something, with its full name, in the parser's order."""
    children = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not children:
        yield parser.prog, parser
    for action in children:
        for child in action.choices.values():
            yield from commands(child)


def _argument(action: argparse.Action) -> tuple[str, str]:
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if not action.option_strings:
        shown = value if action.metavar else action.dest
        return f"[{shown}]" if action.nargs == "?" else shown, _about(action)
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names, _about(action)
    if action.choices is not None:
        value = "|".join(str(choice) for choice in action.choices)
    return f"{names} {value}", _about(action)


def _about(action: argparse.Action) -> str:
    parts = [action.help] if action.help else []
    if action.required and action.option_strings:
        parts.append("required")
    shown = action.default not in (None, "", False, 0.0, argparse.SUPPRESS)
    if shown and "default" not in (action.help or ""):
        parts.append(f"default {action.default}")
    return "; ".join(parts)


def _usage(name: str, parser: argparse.ArgumentParser) -> str:
    words = [name]
    for action in parser._actions:
        if not action.option_strings:
            words.append(_argument(action)[0])
        elif action.required:
            words.append(_argument(action)[0].split(", ")[-1])
    return " ".join(words) + " [options]"


def command_reference(parser: argparse.ArgumentParser) -> str:
    """A section for each command, with a table of its arguments."""
    parts = []
    for name, command in commands(parser):
        about = command.description or ""
        parts.append(f"### {name}\n\n{about[:1].upper()}{about[1:]}.\n")
        parts.append(f"```sh\n{_usage(name, command)}\n```\n")
        options = {option for action in command._actions for option in action.option_strings}
        hidden = COMMON | CONNECTION if options >= CONNECTION else COMMON
        if options >= CONNECTION:
            parts.append("Takes the connection options.\n")
        shown = [_argument(action) for action in command._actions if not hidden & set(action.option_strings)]
        rows = [(_code(argument), _cell(about)) for argument, about in shown]
        if rows:
            parts.append(_table(("argument", "meaning"), rows))
    return "\n".join(parts)


def _type(kind: Any) -> str:
    if kind is None:
        return ""
    name = getattr(kind, "__name__", str(kind))
    inner = ", ".join(_type(argument) for argument in getattr(kind, "__args__", ()))
    return f"{name.split('[')[0]}[{inner}]" if inner else str(name)


def routes() -> str:
    """The table of routes."""
    rows = []
    for route in ROUTES:
        statuses = "; ".join(f"{status} {about}" for status, about in route.statuses.items())
        query = ", ".join(_code(param.name) for param in route.query)
        headers = ", ".join(_code(name) for name in route.headers)
        takes = " ".join(part for part in (_type(route.body) or route.raw, query, headers) if part)
        gives = _type(route.answer) or route.media
        rows.append((_code(f"{route.method} {route.path}"), route.scope, route.summary, takes, gives, _cell(statuses)))
    return _table(("route", "scope", "what it does", "takes", "gives", "good statuses"), rows)


def client_methods() -> str:
    """The table of the client's methods, in their order."""
    rows = []
    for name, method in vars(Client).items():
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        signature = inspect.signature(method)
        parameters = [item for item in signature.parameters.values() if item.name != "self"]
        words = [_parameter(item) for item in parameters]
        about = (inspect.getdoc(method) or "").partition("\n")[0]
        rows.append((_code(f"{name}({', '.join(words)})"), _cell(about)))
    return _table(("method", "what it does"), rows)


def _parameter(item: inspect.Parameter) -> str:
    if item.kind is inspect.Parameter.VAR_KEYWORD:
        return f"**{item.name}"
    return item.name if item.default is inspect.Parameter.empty else f"{item.name}={item.default!r}"


def problems() -> str:
    """The table of problem types, one row a slug."""
    rows = sorted({(str(problem.status), _code(problem.slug), problem.title) for problem in PROBLEMS.values()})
    return _table(("status", "`type` ends in", "`title`"), rows)


def _reached(state: State, event: Event) -> list[str]:
    """Where an event leads, by trying it on every kind of slot in that state."""
    old, new = Held("0" * 64, "1.0.0"), Held("1" * 64, "2.0.0")
    found = []
    for under in (State.EMPTY, State.TRIAL, State.CONFIRMED) if state is State.STAGED else (State.EMPTY,):
        for previous in (None, old):
            slot = Slot(state, active=old, previous=previous, candidate=new, under=under)
            try:
                found.append(str(step(slot, event, new).state))
            except ModelError:
                continue  # nothing to go back to: the slot stays as it is
    return list(dict.fromkeys(found))


def slot_machine() -> str:
    """The states of a slot as a diagram."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> empty"]
    for state, event in TRANSITIONS:
        lines += [f"    {state} --> {target}: {event}" for target in _reached(state, event)]
    return "\n".join([*lines, "```", ""])


PARTS: Final[Mapping[str, tuple[str, Callable[[], str]]]] = {
    "tinylcm": ("cli.md", lambda: command_reference(tinylcm_parser())),
    "tinysphere": ("cli.md", lambda: command_reference(tinysphere_parser())),
    "routes": ("http-api.md", routes),
    "problems": ("http-api.md", problems),
    "client": ("python-client.md", client_methods),
    "slots": ("architecture.md", slot_machine),
    "ops": ("inference.md", describe_ops),
}


def renewed(page: str, name: str, body: str) -> str:
    """A page with one generated part replaced.

    Raises:
        ValueError: the page does not have the two markers exactly once.
    """
    pattern = re.compile(_MARKED.format(name=re.escape(name), body=".*?"), re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"expected the markers of the generated part {name!r} once")
    return pattern.sub(lambda _: _MARKED.format(name=name, body=body), page)


def main(argv: list[str] | None = None) -> int:
    """Renew or check the pages; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the generated parts of docs/.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a part is out of date")
    arguments = parser.parse_args(argv)
    stale = 0
    for file in sorted({file for file, _ in PARTS.values()}):
        path = DOCS / file
        before = path.read_text()
        after = before
        try:
            for name, (owner, make) in PARTS.items():
                if owner == file:
                    after = renewed(after, name, make())
        except ValueError as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 1
        if after == before:
            continue
        stale += 1
        if arguments.check:
            print(f"{path} is out of date; run `make docs`", file=sys.stderr)
            lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "written", "generated", lineterm="")
            print("\n".join(list(lines)[:60]), file=sys.stderr)
        else:
            path.write_text(after)
            print(f"wrote {path}")
    return int(bool(arguments.check and stale))


if __name__ == "__main__":
    sys.exit(main())
