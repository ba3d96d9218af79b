"""The rows of idempotency keys against a plain model: taken once, free after expiry, never more than the limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, func, select

from policyd.errors import KeyInProgress, Overloaded
from policyd.services.idempotency import KEYS, Claim, Kept, KeyRows, found, scope_of

TTL_US = 50
STEPS = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.lists(st.integers(0, 5), min_size=1, max_size=4),
        st.booleans(),
    ),
    max_size=30,
)


@given(steps=STEPS, keys_max=st.integers(1, 4))
def test_rows_follow_the_model(steps: list[tuple[int, list[int], bool]], keys_max: int) -> None:
    engine = create_engine("sqlite://")
    model: dict[int, tuple[str, int]] = {}
    now, nth = 0, 0
    with engine.connect() as connection:
        KEYS.metadata.create_all(connection)
        rows = KeyRows(connection, keys_max)
        for pause, names, rolled_back in steps:
            now += pause
            claims = {}
            for name in names:
                nth += 1
                claims[f"entry-{nth}"] = Claim(scope_of("p", "t", "r", str(name)), b"body", now, now + TTL_US)
            live = {name: kept for name, kept in model.items() if kept[1] > now}
            expected: dict[str, type[Exception]] = {}
            after = dict(live)
            for (entry, claim), name in zip(claims.items(), names, strict=True):
                if name in after:
                    expected[entry] = KeyInProgress
                elif len(after) >= keys_max:
                    expected[entry] = Overloaded
                else:
                    after[name] = (entry, claim.expires_us)
            connection.commit()
            refused = rows.refused(connection, claims)
            assert {entry: type(error) for entry, error in refused.items()} == expected
            kept = {entry: claim for entry, claim in claims.items() if entry not in refused}
            if kept:
                rows.keep(connection, kept)
            if rolled_back:
                connection.rollback()
                rows.recount(connection)
            else:
                connection.commit()
                model = after
            for name, (entry, expires) in model.items():
                looked_up = found(connection, scope_of("p", "t", "r", str(name)), now)
                assert looked_up == (Kept(b"body", entry) if expires > now else None)
            stored = connection.execute(select(func.count()).select_from(KEYS)).scalar_one()
            assert stored <= keys_max


def test_scopes_do_not_run_together() -> None:
    parts = [("a", "b", "c", "d", 0), ("ab", "", "c", "d", 0), ("a", "bc", "", "d", 0), ("a", "b", "c", "d", 1)]
    assert len({scope_of(*part) for part in parts}) == len(parts)
