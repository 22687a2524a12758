"""The shell commands of README.md and docs/, and what has to hold for each of them: names, files, options.

A fenced block without a language, or with ``sh``, is shell; any other block names its language.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer
from ruamel.yaml import YAML

from services.admin.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMPOSE: dict[str, Any] = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: Mapping[str, Any] = COMPOSE["services"]
PROFILES = {profile for service in SERVICES.values() for profile in service.get("profiles", ())}
_GROUP: Any = typer.main.get_command(app)
_REDIRECTION = re.compile(r"^\d*[<>&|]*[<>][<>&]*$")
_FLAGS = frozenset(
    {
        *("-T", "--no-TTY", "--rm", "--no-deps", "--detach", "-d", "--wait", "--quiet", "--no-log-prefix", "--follow"),
        *("--volumes", "--build", "--pull", "--remove-orphans", "--force-recreate"),
    }
)
"""Options of docker compose without a value."""
_NAMES_SERVICES = frozenset({"build", "exec", "kill", "logs", "pull", "restart", "rm", "run", "start", "stop", "up"})
_KNOWN = _NAMES_SERVICES | {"config", "cp", "down", "ps", "version", "volumes"}


@dataclass(frozen=True)
class Block:
    """A shell block of a page."""

    page: str  # relative to the repository
    line: int  # of its first command, from 1
    text: str

    @property
    def name(self) -> str:
        """The page and the first line: the key in lists, which further lines of the page do not change."""
        return f"{self.page}: {self.text.splitlines()[0].partition('  #')[0].strip()}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the shell blocks of a page. Those in lists are moved to the left."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.M | re.S):
        if match[2] in ("", "sh"):
            lines = [line.removeprefix(match[1]) for line in match[3].splitlines(keepends=True)]
            yield Block(str(page.relative_to(ROOT)), text.count("\n", 0, match.start(3)) + 1, "".join(lines))


def inline(page: Path) -> Iterator[str]:
    """Yield the commands of other programs between single backquotes in a page, outside of blocks."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for code in re.findall(r"`([^`]+)`", text):
        line = " ".join(code.replace("\\|", "|").split())
        if re.match(r"(docker|kubectl|kustomize|systemctl) [a-z-]", line):
            yield line


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each simple command, without redirections, comments and the bodies of here-documents."""
    lines = iter(re.sub(r"\\\n\s*", " ", text).splitlines())
    for line in lines:
        if document := re.search(r"<<-?\s*['\"]?(\w+)", line):
            for body in lines:
                if body.strip() == document[1]:
                    break
        words = shlex.shlex(re.sub(r"(?<=\s)\d(?=[<>])", "", line), posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        skip = False
        for word in words:
            if skip:
                skip = False
            elif _REDIRECTION.match(word):
                skip = True
            elif set(word) <= set("();<>|&"):
                if command:
                    yield command
                command = []
            elif command or not re.match(r"^\w+=", word):
                command.append(word)
        if command:
            yield command


# ------------------------------------------------------------------------------------------ what has to hold


def problems(words: Sequence[str]) -> list[str]:
    """Return why a command would fail as it is written, as far as its words show."""
    program, *rest = words
    if Path(program).name == "mailgroup":
        return _mailgroup(rest)
    if program == "docker":
        return _docker(rest)
    if program == "kubectl":
        return _kubectl(rest)
    if program in ("runuser", "sudo"):
        return problems(rest[rest.index("--") + 1 :]) if "--" in rest else [f"{program} without --"]
    if program == "kustomize":
        return ["kustomize is a program of its own, which the pages install nowhere: kubectl has it built in"]
    if "/" in program and not program.startswith(("/", "~", "$", "http")):
        return [] if (ROOT / program).is_file() else [f"no such file: {program}"]
    return [f"no such file: {word}" for word in rest if re.match(r"(deploy|docs|bench)/", word) and not _there(word)]


def _there(word: str) -> bool:
    """Whether a path of the repository exists; one that a page lets the reader create is in .gitignore."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    return (ROOT / word).exists() or any(word.startswith(pattern.rstrip("/")) for pattern in ignored)


def _mailgroup(words: Sequence[str]) -> list[str]:
    """Whether the command's own parser accepts the words."""
    if list(words) in ([], ["--version"]):
        return []
    command, left = _GROUP, list(words)
    try:
        while hasattr(command, "commands"):
            if not left or left[0] not in command.commands:
                return [f"no such command of mailgroup: {' '.join(words)}"]
            command = command.commands[left.pop(0)]
        command.make_context(" ".join(words), left)
    except Exception as error:  # the parser's own, which typer does not export
        return [f"mailgroup {' '.join(words)}: {error}"]
    return []


def _docker(words: Sequence[str]) -> list[str]:
    if words[:1] == ["build"]:
        file = words[words.index("-f") + 1] if "-f" in words else "Dockerfile"
        return [] if (ROOT / file).is_file() else [f"no such file: {file}"]
    if words[:1] == ["push"]:
        return []
    if words[:1] != ["compose"]:
        return [f"docker {words[0]} depends on names that docker compose chooses: use docker compose"]
    call = compose(words[1:])
    found = [f"no such profile: {profile}" for profile in call.profiles - PROFILES - {"*"}]
    if call.command not in _KNOWN:
        return [*found, f"no such command of docker compose: {call.command}"]
    if call.command == "down" and not (call.profiles & {"*"} or call.profiles >= PROFILES):
        found.append("down leaves the containers of profiles that it does not name")
    found += [f"no such service: {service}" for service in call.services if service not in SERVICES]
    for scaled in re.findall(r"--scale[ =](\S+)=", " ".join(words)):
        if scaled not in SERVICES:
            found.append(f"no such service: {scaled}")
        elif SERVICES[scaled].get("ports"):
            found.append(f"{scaled} publishes ports, so a second one cannot start")
    return found or _inside(call)


@dataclass(frozen=True)
class Compose:
    """The parts of a call of docker compose."""

    profiles: set[str]
    command: str
    services: list[str]
    inner: list[str]  # the command in the container


def compose(words: Sequence[str]) -> Compose:
    """Return the parts of the words after ``docker compose``."""
    left, profiles = list(words), set[str]()
    while left and left[0].startswith("-"):
        option, _, value = left.pop(0).partition("=")
        value = value or left.pop(0)
        if option == "--profile":
            profiles.add(value)
    command, services = (left.pop(0) if left else ""), list[str]()
    while left:
        word = left.pop(0)
        if word.startswith("-"):
            if word not in _FLAGS and "=" not in word and left:
                left.pop(0)
        elif command in _NAMES_SERVICES:
            services.append(word)
            if command in ("exec", "run"):
                break
    return Compose(profiles, command, services, left)


def _inside(call: Compose) -> list[str]:
    """Whether a container can run a command: of mailgroup, or reading a file of a volume."""
    if not call.inner:
        return [f"{call.command} without a command"] if call.command == "exec" else []
    program, *words = call.inner
    if program == "mailgroup":
        if words[:1] in (["backup"], ["restore"]) and "--loaded" not in words and call.services != ["backup"]:
            return [f"{words[0]} needs the folder of backups, which the service backup mounts"]
        return _mailgroup(words)
    [service] = call.services
    mounts = [str(volume).split(":")[1] for volume in SERVICES[service].get("volumes", ())]
    if program == "cat":
        return [f"{service} mounts no {word}" for word in words if not word.startswith(tuple(mounts))]
    if program.startswith(("pg_", "psql")):
        return [] if service == "postgres" else [f"{program} is in the container of postgres"]
    return []


def _kubectl(words: Sequence[str]) -> list[str]:
    found = []
    for option, path in pairwise(words):
        if option == "-k" and not _there(path):
            found.append(f"no such overlay: {path}")
        if option in ("-n", "--namespace") and path not in ("mailgroup", "ingress-nginx", "monitoring"):
            found.append(f"another namespace: {path}")
    kinds = {"deploy": "Deployment", "deployment": "Deployment", "statefulset": "StatefulSet", "sts": "StatefulSet"}
    plain = [word for word in words[: words.index("--")] if "--" in words] if "--" in words else list(words)
    for word in plain:
        kind, slash, name = word.partition("/")
        if slash and kind in kinds and "/" not in name and not _manifest(kinds[kind], name):
            found.append(f"no {kinds[kind]} {name} in deploy/k8s")
    if "--" in words:
        inner = list(words[list(words).index("--") + 1 :])
        if inner[0] == "mailgroup" and inner[1:2] in (["backup"], ["restore"]) and "--loaded" not in inner:
            found.append("the image has no pg_dump and pg_restore: run them in PostgreSQL's pod")
        elif inner[0] == "mailgroup":
            found += _mailgroup(inner[1:])
    return found


def _manifest(kind: str, name: str) -> bool:
    """Whether deploy/k8s has an object."""
    text = "\n---\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "deploy/k8s").rglob("*.yaml"))
    return re.search(rf"^kind: {kind}\nmetadata:\n(?: .*\n)*?  name: {re.escape(name)}$", text, re.M) is not None
