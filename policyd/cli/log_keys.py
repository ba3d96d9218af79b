"""``policyd audit rotate-key`` and ``cosign``: who signs the log, and who else vouches for it.

Rules: both work on a data directory; a key is only replaced while nothing else writes the log; what a witness says is
kept in a file, as a checkpoint with one more signature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from policyd.cli.options import ConfigFlag, DataDirFlag, settings_of
from policyd.cli.terminal import say


def rotate_key(data_dir: DataDirFlag = None, config: ConfigFlag = None) -> None:
    """Replace the signing key of the log by a new one, which an entry names that the old key signs.

    Example: policyd audit rotate-key --data-dir /var/lib/policyd
    """
    import asyncio

    from policyd.services.log_place import directory_of
    from policyd.services.rotation import rotate

    with directory_of(settings_of(config, data_dir=data_dir)) as directory:
        key = asyncio.run(rotate(directory))
    typer.echo(key.text)
    say("give this key to whoever verifies the log; by the one that they have, they will know it too")


def cosign(
    witness_url: Annotated[str, typer.Option(metavar="URL", help="Where the witness answers `add-checkpoint`.")],
    witness: Annotated[str, typer.Option(metavar="KEY", help="Public key of the witness, or a file that holds it.")],
    file: Annotated[Path, typer.Option(metavar="FILE", help="Where the cosigned checkpoint is kept.")],
    data_dir: DataDirFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Ask a witness to cosign the newest checkpoint, and keep the result for `audit verify --anchor`.

    Example: policyd audit cosign --witness-url https://witness.example/w1 --witness w1.pub --file log.cosigned
    """
    from policyd.services.cosigning import cosign_newest
    from policyd.services.evidence import keys_of
    from policyd.services.log_place import directory_of

    keys = keys_of([witness])
    if len(keys) != 1:
        raise typer.BadParameter("--witness names one key")
    directory = directory_of(settings_of(config, data_dir=data_dir))
    size = cosign_newest(directory, keys[0], witness_url, file)
    say(f"{keys[0].name} vouches for the first {size} entries; kept in {file}")
