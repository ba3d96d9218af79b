"""The clients and the command line at a server that authenticates, over TLS: who they are, and who they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from policyd.cli.main import run
from policyd.errors import NotFound, ServerUnreachable, Unauthenticated
from tests.integration.conftest import serving
from tests.integration.test_client import awaiting, waiting

WORKLOAD = {"tenant": "eu-bank", "project": "support-chat", "model": "llama-3.1-70b-instruct"}


class Door(NamedTuple):
    """An address, the authority behind its certificate, and the file of each caller's token."""

    address: str
    authority: Path
    tokens: dict[str, Path]


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    own = authority.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(folder / "key.pem")
    own.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    tokens = {name: folder / f"{name}.token" for name in ("bank", "lab")}
    for name, tenant in (("bank", "eu-bank"), ("lab", "nordic-lab")):
        make_token(tokens[name], folder / "tokens.yaml", name, tenant)
    flags = {
        "data_dir": folder / "data",
        "auth": {"tokens_file": folder / "tokens.yaml"},
        "tls": {"certificate_file": folder / "cert.pem", "key_file": folder / "key.pem"},
    }
    with serving(flags) as server:
        yield Door(server.address, folder / "ca.pem", tokens)


def make_token(path: Path, file: Path, name: str, tenant: str) -> None:
    """``policyd token new``, its token in a file of its own."""
    from contextlib import redirect_stdout

    with path.open("w") as kept, redirect_stdout(kept):
        assert run(["token", "new", name, "--file", str(file), "--role", "developer", "--tenant", tenant]) == 0


@pytest.mark.parametrize("client", [waiting, awaiting], ids=["Client", "AsyncClient"])
def test_a_client_is_who_its_token_says(client: Callable[..., Any], door: Door) -> None:
    for ask in client(door.address, token_file=door.tokens["bank"], ca_file=door.authority):
        decision = ask("decide", WORKLOAD)
        assert decision["outcome"] == "allow"
        assert ask("record", decision["id"])["principal"] == "token:bank"
    for ask in client(door.address, token_file=door.tokens["lab"], ca_file=door.authority):
        with pytest.raises(NotFound):
            ask("record", decision["id"])
    for ask in client(door.address, ca_file=door.authority):
        with pytest.raises(Unauthenticated) as refused:
            ask("decide", WORKLOAD)
        assert refused.value.request_id
    for ask in client(door.address, token_file=door.tokens["bank"]):
        with pytest.raises(ServerUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
            ask("decide", WORKLOAD)


def test_the_command_line_shows_a_token(
    door: Door, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "w.yaml"
    file.write_text("workload: {tenant: eu-bank, project: support-chat, model: llama-3.1-70b-instruct}\n")
    known = ["--server", door.address, "--ca-file", str(door.authority)]
    assert run(["decide", str(file), *known]) == Unauthenticated.exit_code
    assert "identity.unauthenticated" in capsys.readouterr().err
    assert run(["decide", str(file), *known, "--token-file", str(door.tokens["bank"]), "-o", "json"]) == 0
    assert '"outcome":"allow"' in capsys.readouterr().out
    monkeypatch.setenv("POLICYD_TOKEN_FILE", str(door.tokens["bank"]))
    assert run(["audit", "search", *known]) == 0
    assert run(["audit", "search", *known, "--token-file", str(tmp_path / "none")]) == 2
    told = capsys.readouterr()
    assert door.tokens["bank"].read_text().strip() not in told.out + told.err
