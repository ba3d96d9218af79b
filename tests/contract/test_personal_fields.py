"""The keys of personal fields, in a file and in PostgreSQL: sealed, opened, found, destroyed, and nobody else's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import personal as personal_fields
from audit.errors import KeyInvalid, LogUnavailable, RecordInvalid
from audit.personal import ERASED, FIELD, UNREADABLE, Readable, Vault, open_wrapping_key, opened
from audit.record import BODY_MAX_BYTES, Entry, Search, encode, personal
from audit.stores import LogStore, SqliteStore
from policyd.services.clock import uuid7

NOW_US = 1_790_000_000_000_000


class Place:
    """A store of keys with its wrapping key."""

    def __init__(self, store: LogStore, key_file: Path) -> None:
        self.store = store
        self.key_file = key_file

    @contextmanager
    def vault(self) -> Iterator[Vault]:
        engine = self.store.open_keys(write=True)
        assert engine is not None
        try:
            with closing(Vault(engine, self.key_file)) as made:
                yield made
        finally:
            engine.dispose()

    @contextmanager
    def readable(self) -> Iterator[Readable]:
        engine = self.store.open_keys(write=False)
        with closing(Readable(engine, open_wrapping_key(self.key_file, create=False))) as made:
            yield made

    def document(self, entry: Entry) -> dict[str, Any]:
        with self.readable() as readable:
            return opened(entry.body, readable.fields([entry.body])[0])


@pytest.fixture(params=["file", "postgresql"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    if request.param == "file":
        return Place(SqliteStore(tmp_path / "audit.sqlite"), tmp_path / "personal.key")
    from audit.postgresql_store import PostgresqlStore

    return Place(PostgresqlStore(request.getfixturevalue("database"), tmp_path / "origin"), tmp_path / "personal.key")


def entry(tenant: str = "acme", name: str = "token:ana", **said: Any) -> Entry:
    entry_id = uuid7(NOW_US)
    body = encode({"id": entry_id, "workload": {"model": "m"}}, os.urandom(16))
    about = (personal(name, {"principal": name, **said}),)
    return Entry("decision", entry_id, NOW_US, body, Search(tenant=tenant or None, principal=name), (), about)


def sealed(vault: Vault, one: Entry) -> Entry:
    vault.ready([(one.search.tenant or "", name) for name, _ in one.personal])
    return vault.seal(one)


def test_what_is_sealed_is_opened_where_it_belongs_and_nowhere_else_in_the_open(place: Place) -> None:
    with place.vault() as vault:
        made = sealed(vault, entry(workload={"labels": {"ticket": "Ana's desk"}}))
    assert b"ana" not in made.body.lower()
    assert b"desk" not in made.body
    assert made.personal == ()
    assert made.token is not None
    assert "ana" not in made.token
    assert place.document(made)["workload"] == {"model": "m", "labels": {"ticket": "Ana's desk"}}
    assert place.document(made)["principal"] == "token:ana"
    assert opened(made.body, None)["principal"] == UNREADABLE
    assert next(iter(orjson.loads(made.body))) == FIELD
    with place.readable() as readable:
        assert readable.tokens("token:ana") == (made.token,)
        assert readable.tokens("token:ben") == ()


def test_the_same_words_are_never_the_same_bytes(place: Place) -> None:
    with place.vault() as vault:
        one = entry()
        bodies = {sealed(vault, one).body for _ in range(50)}
    with place.vault() as vault:
        bodies |= {sealed(vault, one).body for _ in range(50)}
    assert len(bodies) == 100


def test_an_erased_person_is_erased_and_all_others_are_not(place: Place) -> None:
    with place.vault() as vault:
        made = [sealed(vault, entry(tenant, name)) for tenant in ("acme", "lab") for name in ("token:ana", "token:ben")]
        token = vault.found("acme", "token:ana")
        assert token is not None
        vault.destroy(token)
        vault.destroy(token)
        assert vault.found("acme", "token:ana") is None
        again = sealed(vault, entry())
    names = [place.document(each)["principal"] for each in made]
    assert names == [ERASED, "token:ben", "token:ana", "token:ben"]
    assert place.document(again)["principal"] == "token:ana"
    assert again.token != token
    with place.readable() as readable:
        assert token not in readable.tokens("token:ana")
        assert len(readable.tokens("token:ana")) == 2


people = st.tuples(st.sampled_from(["", "acme", "lab"]), st.sampled_from(["ana", "ben", "Ü\u2603", "o'hara"]))


@settings(max_examples=20)
@given(steps=st.lists(st.tuples(st.booleans(), people), min_size=1, max_size=30))
def test_erasing_one_touches_no_other(steps: list[tuple[bool, tuple[str, str]]], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("keys")
    place = Place(SqliteStore(folder / "audit.sqlite"), folder / "personal.key")
    kept: list[tuple[tuple[str, str], Entry]] = []
    gone: list[Entry] = []
    with place.vault() as vault:
        for erased, (tenant, name) in steps:
            token = vault.found(tenant, name)
            if erased and token is not None:
                vault.destroy(token)
                gone += [each for person, each in kept if person == (tenant, name)]
                kept = [(person, each) for person, each in kept if person != (tenant, name)]
            else:
                kept.append(((tenant, name), sealed(vault, entry(tenant, name))))
    assert all(place.document(each)["principal"] == ERASED for each in gone)
    assert all(place.document(each)["principal"] == name for (_, name), each in kept)
    with place.readable() as readable:
        for _, name in {person for person, _ in kept}:
            tokens = {each.token for person, each in kept if person[1] == name}
            assert set(readable.tokens(name)) == tokens


def test_a_file_of_keys_keeps_nothing_of_what_was_destroyed(tmp_path: Path) -> None:
    place = Place(SqliteStore(tmp_path / "audit.sqlite"), tmp_path / "personal.key")
    with place.vault() as vault:
        sealed(vault, entry())
        sealed(vault, entry(name="token:ben"))
        token = vault.found("acme", "token:ana")
        assert token is not None
        key_id = bytes.fromhex(token.removeprefix("p:"))
        with vault._writing() as connection:
            wrapped = personal_fields.keys_store.keys_by_id(connection, [key_id])[key_id]
        assert wrapped.wrapped in b"".join(file.read_bytes() for file in tmp_path.iterdir())
        vault.destroy(token)
        left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert wrapped.wrapped not in left
    assert wrapped.person not in left
    assert wrapped.id not in left


def test_two_writers_of_one_database_have_one_key_a_person(database: str, tmp_path: Path) -> None:
    from audit.postgresql_store import PostgresqlStore

    place = Place(PostgresqlStore(database, tmp_path / "origin"), tmp_path / "personal.key")
    with place.vault() as one, place.vault() as two:
        first, second = sealed(one, entry()), sealed(two, entry())
        assert first.token == second.token
        assert first.token is not None
        two.destroy(first.token)
        one._looked_s -= personal_fields.LOOKED_S
        assert sealed(one, entry()).token != first.token


def test_no_more_people_are_remembered_than_so_many(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(personal_fields, "REMEMBERED_MAX", 3)
    with place.vault() as vault:
        names = [f"token:{nth}" for nth in range(5)]
        tokens = [sealed(vault, entry(name=name)).token for name in names]
        assert len(vault._known) <= 3
        assert [sealed(vault, entry(name=name)).token for name in names] == tokens
        vault.ready([("acme", name) for name in names])
        assert [vault.seal(entry(name=name)).token for name in names] == tokens


def test_a_lost_store_leaves_the_fields_unreadable_and_another_wrapping_key_is_refused(tmp_path: Path) -> None:
    place = Place(SqliteStore(tmp_path / "audit.sqlite"), tmp_path / "personal.key")
    with place.vault() as vault:
        made = sealed(vault, entry())
    key = place.key_file.read_bytes()
    place.key_file.unlink()
    with pytest.raises(KeyInvalid, match="missing"), place.vault():
        pass
    place.key_file.touch(mode=0o600)
    with pytest.raises(KeyInvalid, match="not 32 bytes"), place.vault():
        pass
    place.key_file.unlink()
    open_wrapping_key(place.key_file, create=True)
    with pytest.raises(KeyInvalid, match="another key"), place.vault():
        pass
    place.key_file.write_bytes(key)
    place.key_file.chmod(0o640)
    with pytest.raises(KeyInvalid, match="0600"), place.vault():
        pass
    place.key_file.chmod(0o600)
    assert place.document(made)["principal"] == "token:ana"
    (tmp_path / "personal.sqlite").unlink()
    assert opened(made.body, Readable(None, None).fields([made.body])[0])["principal"] == UNREADABLE
    with place.vault():
        assert place.document(made)["principal"] == ERASED


def test_a_store_that_is_damaged_is_no_key(tmp_path: Path) -> None:
    place = Place(SqliteStore(tmp_path / "audit.sqlite"), tmp_path / "personal.key")
    with place.vault() as vault:
        made = sealed(vault, entry())
    (tmp_path / "personal.sqlite").write_bytes(b"nothing of that kind" * 1_000)
    with pytest.raises(LogUnavailable), place.vault():
        pass
    assert place.document(made)["principal"] == UNREADABLE


def test_a_ciphertext_is_that_of_its_entry(place: Place) -> None:
    with place.vault() as vault:
        one, two = sealed(vault, entry()), sealed(vault, entry())
    moved = {**orjson.loads(one.body), "id": two.id}
    with place.readable() as readable:
        assert readable.fields([orjson.dumps(moved)])[0] == {"principal": UNREADABLE}


def test_personal_fields_count_for_the_length_of_a_body() -> None:
    with pytest.raises(RecordInvalid, match="bytes"):
        entry(detail="x" * (BODY_MAX_BYTES * 3 // 4))
    with pytest.raises(RecordInvalid):
        personal("ana", {"share": 0.5})
