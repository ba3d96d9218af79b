"""The budget ledger: what accounts may spend, what is held and what is gone.

``windows`` and ``rules`` are pure; ``tables`` and ``store`` keep accounts and holds in the database of the log and own
no transaction: ``policyd.services.commit`` does.
"""
