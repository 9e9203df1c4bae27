"""Tests of error messages of commands: the flag, the value, what was expected, and never a traceback."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from xds.cli import _two_dashes
from xds.cli.main import gossamer


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(gossamer, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize("command", ["serve", "bootstrap", "sidecar", "redirect-traffic", "mesh", "ca", "demo"])
def test_every_command_explains_itself(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert command in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--listen", "localhost"], "Invalid value for '--listen': 'localhost' is not HOST:PORT"),
        (["serve", "--listen", "localhost:99999"], "'localhost:99999' is not HOST:PORT"),
        (["serve", "--consul", "ftp://x"], "Consul's address 'ftp://x' is not one"),
        (["serve", "--virtual-ip-range", "10.0.0.1/8"], "'10.0.0.1/8' is not a network"),
        (["serve", "--token-file", "/nowhere"], "the token file '/nowhere' does not exist"),
        (["serve", "--default-intention-policy", "maybe"], "'maybe' is not one of 'allow', 'deny'"),
        (["bootstrap"], "PROXY_ID) or --sidecar-for SERVICE_ID"),
        (["bootstrap", "a", "--sidecar-for", "b"], "either its own service ID (PROXY_ID) or --sidecar-for"),
        (["bootstrap", "a", "--consul", "http://127.0.0.1:1"], "can't reach Consul at http://127.0.0.1:1"),
        (["sidecar", "a", "--envoy", "/nowhere/envoy"], "no Envoy at '/nowhere/envoy'"),
        (["serve", "--listen", "nosuchhost.invalid:1"], "can't listen on nosuchhost.invalid:1: "),
        (["redirect-traffic", "--proxy-uid", "1", "--proxy-inbound-port", "15001"], "are both 15001"),
        (["redirect-traffic", "--undo", "--netns", "nope"], "name a network namespace as in 'ip netns'"),
        (["redirect-traffic", "--proxy-uid", "nobody-here"], "is neither a user's number nor the name of one"),
        (["redirect-traffic", "--proxy-inbound-port", "0", "--proxy-uid", "1"], "0 is not in the range 1<=x<=65535"),
        (["redirect-traffic", "--proxy-uid", "1"], "give either --proxy-id"),
        (["redirect-traffic", "--proxy-uid", "1", "--proxy-id", "a", "--proxy-inbound-port", "1"], "give either"),
        (["redirect-traffic", "--proxy-inbound-port", "1"], "--proxy-uid is missing"),
        (["redirect-traffic", "--exclude-outbound-cidr", "10.0.0.1/8"], "is not a network"),
        (["redirect-traffic", "--undo", "--verify"], "exclude each other"),
        (["redirect-traffic", "--undo", "--hold"], "exclude each other"),
        (["redirect-traffic", "--hold", "--netns", "web"], "it excludes --netns"),
        (["serve", "--mesh", "/nowhere.yaml"], "/nowhere.yaml: can't be read: No such file or directory"),
        (["serve", "--mesh", "m.yaml", "--consul", "http://127.0.0.1:1"], "--mesh and --consul exclude each other"),
        (["serve", "--state", "/tmp/x"], "--state is for a mesh file"),
        (["bootstrap", "a", "--mesh", "/nowhere.yaml"], "/nowhere.yaml: can't be read"),
        (["bootstrap", "a", "--mesh", "/nowhere.yaml", "--node-name", "n"], "a mesh file knows no nodes"),
        (["mesh", "check", "/nowhere.yaml"], "/nowhere.yaml can't be used /nowhere.yaml: can't be read"),
        (["mesh", "export", "--consul", "http://127.0.0.1:1"], "can't reach Consul at http://127.0.0.1:1"),
        (["serve", "--tls", "mesh", "--plaintext"], "--plaintext, --tls mesh and --tls-cert exclude each other"),
        (["serve", "--tls-cert", "/c"], "certificate files are --tls-cert and --tls-key"),
        (["serve", "--tls-client-ca", "/c"], "--tls-client-ca goes with both of them"),
        (
            ["bootstrap", "a", "--plaintext", "--xds-ca", "/c"],
            "--tls mesh and --xds-ca exclude each other",
        ),
        (["bootstrap", "a", "--xds-sni", "x"], "--xds-sni and --xds-cert are for certificate files: give --xds-ca"),
        (["bootstrap", "a", "--xds-ca", "/c", "--xds-cert", "/c"], "needs both --xds-cert and --xds-key"),
        (["ca", "rotate"], "say whose authority: --mesh FILE"),
        (["ca", "rotate", "--mesh", "/nowhere.yaml"], "no certificate authority in /nowhere.yaml.state"),
    ],
)
def test_the_problem_is_named(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert words in " ".join(result.output.split())


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("serve", "--listen", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0")
        assert result.exit_code == 1
        assert f"can't listen on 127.0.0.1:{port}" in result.output
        result = run("serve", "--listen", "127.0.0.1:0", "--admin", f"127.0.0.1:{port}")
        assert result.exit_code == 1
        assert f"can't listen on 127.0.0.1:{port}" in result.output


def test_a_dry_run_prints_the_rules_and_changes_nothing() -> None:
    result = run("redirect-traffic", "--proxy-uid", "5678", "--proxy-inbound-port", "20000", "--dry-run")
    assert result.exit_code == 0
    assert "meta skuid 5678 return" in result.output


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("-proxy-id", "--proxy-id"),
        ("-proxy-id=a", "--proxy-id=a"),
        ("--x", "--x"),
        ("-h", "-h"),
        ("-", "-"),
        ("a-b", "a-b"),
    ],
)
def test_consuls_single_dash_spelling(given: str, taken: str) -> None:
    assert _two_dashes(given) == taken


def test_commands_are_read_without_grpc() -> None:
    """gRPC takes its log's variables when it is imported, and `gossamer serve` sets them; other commands need none."""
    program = "import sys, xds.cli.main; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
