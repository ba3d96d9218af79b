"""The log of decisions: what is recorded, how it is kept, how it is found.

    record.py   what an entry and a blob are; canonical bytes; the leaf hash
    tables.py   the tables
    schema.py, migrations/   the schema, and bringing a log up to it
    store.py    opening a log in a file, checking it, appending to it
    stores.py   where a log lives: the port, and a file behind it
    postgresql.py, postgresql_store.py   a database behind it, that many writers share
    query.py    searching it, and reading single records and blobs
    report.py   counting it
    entries.py  reading it from front to back
    ocsf.py     an entry as an event of OCSF
    parquet.py  entries as Parquet files
    tree.py     the Merkle tree: root, right edge, proofs and their verification
    note.py     signed notes and their keys
    checkpoint.py  how much of a log there is, signed
    proof.py    receipts: one entry is in the log
    signer.py   the private key in a file
    fold.py     a whole log, checked from front to back
    export.py   a whole log as JSON lines
    verify.py   checking an export, or the file of a log, offline
    tree_tables.py, tree_store.py   the tree where the log is
    errors.py   everything that can go wrong here

Rules: this package imports neither ``policyd`` nor ``connectors``; it owns no transaction (the caller begins,
commits and rolls back); exact bytes are stored and hashed, and nothing is encoded again to check them.
"""
