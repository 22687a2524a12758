"""deploy/machine/supervise.py: the configuration of supervisord."""

from __future__ import annotations

from configparser import RawConfigParser
from pathlib import Path

from deploy.machine.programs import Program
from deploy.machine.supervise import configuration, service


def parsed(*programs: Program, data: Path = Path("/data")) -> RawConfigParser:
    parser = RawConfigParser()
    parser.read_string(configuration(programs, data, data / "socket"))
    return parser


def test_no_number_of_restarts_makes_it_stop() -> None:
    # with startsecs = 0 supervisord does not count early deaths
    section = parsed(service("router"))["program:router"]
    assert (section["startsecs"], section["autorestart"]) == ("0", "true")


def test_all_services_stop_together_and_before_the_servers() -> None:
    server = Program("postgres", ("postgres",), {}, Path("/data"), priority=10)
    parser = parsed(server, service("router"), service("sender"))
    assert parser["group:services"]["programs"] == "router,sender"
    assert int(parser["group:services"]["priority"]) > int(parser["program:postgres"]["priority"])


def test_services_wait_to_be_started_and_servers_do_not() -> None:
    parser = parsed(Program("postgres", ("postgres",), {}, Path("/data"), priority=10), service("router"))
    assert parser["program:postgres"]["autostart"] == "true"
    assert parser["program:router"]["autostart"] == "false"


def test_a_percent_sign_and_a_blank_in_a_path_survive() -> None:
    data = Path("/my data/100%")
    section = parsed(Program("epmd", ("epmd", "-x", "a b"), {}, data, priority=5), data=data)["program:epmd"]
    assert section["directory"] == "/my data/100%%"
    assert section["command"].endswith("epmd -x 'a b'")


def test_a_server_gets_only_its_own_environment() -> None:
    command = Program("epmd", ("epmd",), {"HOME": "/x"}, Path("/data"), priority=5).arguments()
    assert command[-4:] == ["env", "-i", "HOME=/x", "epmd"]
