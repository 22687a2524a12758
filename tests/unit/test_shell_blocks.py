"""The shell commands of README.md and docs/ as they are written: syntax, commands, files, services, profiles."""

from __future__ import annotations

import subprocess

import pytest

from tests.shell_blocks import PAGES, ROOT, Block, blocks, commands, inline, problems

NOT_RUN = {
    "README.md: ./mailgroup demo": "it installs packages and runs for minutes: tests/integration/test_demo_output.py",
    "docs/containers.md: install -d -o 10001 -g 10001 -m 700 /srv/backup": "it makes a folder on this machine",
    "docs/containers.md: docker compose up --detach --wait postgres": "it needs a second machine: deploy/smoke.py",
    "docs/containers.md: docker compose run --rm --no-deps secrets make-secrets new-key": "it needs the volume of the "
    "key: tests/unit/test_container_secrets.py",
    "docs/day-2.md: nft add table inet mailgroup": "it changes the firewall of this machine",
    "docs/day-2.md: apt-get install --yes certbot": "it needs a public name and the service of systemd",
    "docs/day-2.md: mailgroup restore /backup/monday --data /srv/drill": "it starts a second system for a minute",
    "docs/manual.md: mailgroup external add support@company.com pop3.host=pop3.company.com "
    "smtp.host=smtp.company.com history=from_now password=-": "it needs the provider: tests/e2e/test_examples.py",
    "docs/manual.md: mailgroup external set support@company.com imap.host=imap.company.com password=-": "it needs the "
    "provider: tests/integration/test_imap_accounts.py",
    "docs/manual.md: mailgroup external set support@company.com imap.sent=true imap.answered=true": "it needs "
    "an account with IMAP: tests/integration/test_provider_filing.py",
    "docs/manual.md: mailgroup local set alex@local.com junk=true": "it needs an account with "
    "IMAP: tests/e2e/test_junk.py",
    "docs/service.md: ./mailgroup install-service": "it needs systemd: tests/unit/test_installing.py",
    "docs/service.md: git pull": "`upgrade` needs systemd: tests/unit/test_installing.py",
    "docs/service.md: systemctl stop mailgroup": "it needs systemd",
}
"""Shell blocks that tests/e2e/test_shell_blocks.py does not run, with the reason."""
ALL = [block for page in PAGES for block in blocks(page)]


@pytest.mark.parametrize("block", ALL, ids=lambda block: f"{block.page}:{block.line}")
def test_the_words_of_every_shell_block_are_right(block: Block) -> None:
    parsed = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert parsed.returncode == 0, parsed.stderr
    assert [problem for words in commands(block.text) for problem in problems(words)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_words_of_every_command_in_a_sentence_are_right(page: object) -> None:
    for line in inline(page):  # type: ignore[arg-type]  # a path
        if "…" not in line:
            written = line.replace("SERVICE", "fetcher")
            assert [problem for words in commands(written) for problem in problems(words)] == [], line


def test_every_block_has_a_name_of_its_own_and_the_list_names_no_other() -> None:
    names = [block.name for block in ALL]
    assert len(set(names)) == len(names) > 15
    assert set(NOT_RUN) <= set(names) and all(NOT_RUN.values())


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("mailgroup apply", "Missing parameter: file"),
        ("mailgroup parked lists", "no such command of mailgroup"),
        ("docker compose down", "leaves the containers of profiles"),
        ("docker compose --profile demos up", "no such profile"),
        ("docker compose exec fetch mailgroup status", "no such service"),
        ("docker compose exec fetcher mailgroup backup /backup/monday", "needs the folder of backups"),
        ("docker compose exec fetcher cat /secrets/console/admin.password", "mounts no"),
        ("docker compose up --detach --scale pop3_out=2", "publishes ports"),
        ('docker volume rm "$(basename "$PWD")_postgres"', "names that docker compose chooses"),
        ("cd deploy/k8s/overlays/small && kustomize edit set image a=b", "a program of its own"),
        ("kubectl apply -k deploy/k8s/overlays/large", "no such overlay"),
        ("kubectl -n mailgroup exec deploy/fetch -- mailgroup status", "no Deployment fetch"),
        ("deploy/secret.sh small | kubectl apply -f -", "no such file"),
    ],
)
def test_wrong_words_are_found(line: str, problem: str) -> None:
    assert problem in "\n".join(found for words in commands(line) for found in problems(words))


def test_words_are_found_behind_pipes_redirections_and_here_documents() -> None:
    first = "A=b ./mailgroup trace 'a b' 2>&1 | mailgroup logs - # c"
    text = f"{first}\ncat > x <<END\nmailgroup no\nEND\nsource <(mailgroup up)\n"
    assert list(commands(text)) == [
        *(["./mailgroup", "trace", "a b"], ["mailgroup", "logs", "-"], ["cat"], ["source"], ["mailgroup", "up"])
    ]
