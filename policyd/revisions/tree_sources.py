"""Trees of files from a directory, and from an OPA bundle: a gzipped tar archive with an optional ``.manifest``.

Rules: a bundle is read front to back and never unpacked to a disk, so nothing in it can name a place outside; what is
inflated is counted while it is read; a bundle of the same files has the same digest as the directory they came from.

Refused: paths that leave the bundle, links and devices, a file given twice, an archive that is cut off or damaged, and
what is larger than a tree may be.
"""

from __future__ import annotations

import stat
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, cast

import orjson

from policyd.errors import RevisionError, SourceRefused, SourceUnreachable
from policyd.ports import SourceTree, TreeLimits
from policyd.revisions.trees import MAX_DEPTH, MAX_FILE_BYTES, MAX_FILES, MAX_TREE_BYTES, read_tree, tree_commit

LIMITS: Final = TreeLimits(MAX_FILES, MAX_FILE_BYTES, MAX_TREE_BYTES, MAX_DEPTH)
MANIFEST: Final = PurePosixPath(".manifest")
REVISION_MAX_CHARS: Final = 256
_MEMBERS_MAX: Final = 5 * MAX_FILES
_CHUNK_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class DirectorySource:
    """A folder, or one file, as it lies on the disk."""

    root: Path
    suffixes: tuple[str, ...]

    @property
    def place(self) -> str:
        """The path."""
        return str(self.root)

    def read(self, known: str | None) -> SourceTree | None:
        """See ``policyd.ports.TreeSource``; a folder is always read, for it can change without a commit."""
        del known
        if not self.root.exists():
            raise SourceUnreachable(f"{self.root}: no such file or folder")
        try:
            files = read_tree(self.root, self.suffixes)
        except RevisionError as error:
            raise SourceRefused(error.detail, findings=error.findings) from None
        return SourceTree(files, tree_commit(self.root, files, self.suffixes))


@dataclass(frozen=True, slots=True)
class BundleSource:
    """A bundle file; ``path`` is the folder in it that holds the tree."""

    file: Path
    suffixes: tuple[str, ...]
    path: str = ""
    limits: TreeLimits = LIMITS

    @property
    def place(self) -> str:
        """File and folder."""
        return f"{self.file}{':' + self.path if self.path else ''}"

    def read(self, known: str | None) -> SourceTree | None:
        """See ``policyd.ports.TreeSource``. The commit is the revision that the manifest names."""
        del known
        try:
            with self.file.open("rb") as raw:
                if not stat.S_ISREG(self.file.stat().st_mode):
                    raise SourceRefused(f"{self.file} is no regular file")
                files = self._files(raw)
        except OSError as error:
            raise SourceUnreachable(f"{self.file}: {error.strerror or error}") from None
        revision = _revision(self.file, files.pop(MANIFEST, None))
        below = PurePosixPath(self.path) if self.path else PurePosixPath()
        kept = {
            path.relative_to(below): content
            for path, content in files.items()
            if path.is_relative_to(below) and path.name.endswith(self.suffixes)
        }
        if not kept:
            raise SourceRefused(f"{self.place}: holds no file that ends in {' or '.join(self.suffixes)}")
        return SourceTree(dict(sorted(kept.items(), key=lambda item: str(item[0]).encode())), revision)

    def _files(self, raw: BinaryIO) -> dict[PurePosixPath, bytes]:
        found: dict[PurePosixPath, bytes] = {}
        try:
            # A stream reads forward only and inflates as it goes; `tarfile` would otherwise look for the end first.
            inflating = cast(Any, _Inflating(raw, self.limits.tree_bytes * 2))
            with tarfile.open(fileobj=inflating, mode="r|") as archive:
                for path, content in self._members(archive):
                    if path in found:
                        raise SourceRefused(f"{self.file}: {path} is in the bundle twice")
                    found[path] = content
            inflating.finish()
        except (tarfile.TarError, zlib.error, EOFError) as error:
            raise SourceRefused(f"{self.file} is no whole bundle: {error}") from None
        return found

    def _members(self, archive: tarfile.TarFile) -> Iterator[tuple[PurePosixPath, bytes]]:
        total_bytes = files = 0
        for count, member in enumerate(archive, 1):
            if count > _MEMBERS_MAX:
                raise SourceRefused(f"{self.file} has more than {_MEMBERS_MAX} entries")
            path = self._inside(member.name)
            if member.isdir():
                continue
            if not member.isreg():
                raise SourceRefused(f"{self.file}: {member.name!r} is a link or a device; put the file itself there")
            if path != MANIFEST and any(part.startswith(".") for part in path.parts):
                continue
            if path != MANIFEST and not path.name.endswith(self.suffixes):
                continue
            files, total_bytes = files + 1, total_bytes + member.size
            if member.size > self.limits.file_bytes:
                raise SourceRefused(f"{self.file}: {path} is larger than {self.limits.file_bytes} bytes")
            if files > self.limits.files or total_bytes > self.limits.tree_bytes:
                raise SourceRefused(
                    f"{self.file} has more than {self.limits.files} files, or {self.limits.tree_bytes} bytes"
                )
            taken = archive.extractfile(member)
            content = b"" if taken is None else taken.read()
            if len(content) != member.size:
                raise SourceRefused(f"{self.file} is no whole bundle: {path} is cut off")
            yield path, content

    def _inside(self, name: str) -> PurePosixPath:
        """The path of a member, which stays inside. OPA writes a slash in front, which means the root of the bundle."""
        path = PurePosixPath(name.removeprefix("/"))
        if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
            raise SourceRefused(f"{self.file}: {name!r} leaves the bundle; write the bundle with plain paths")
        if len(path.parts) > self.limits.depth + 1:
            raise SourceRefused(f"{self.file}: {name!r} is deeper than {self.limits.depth} folders")
        return path


class _Inflating:
    """Inflates gzip as it is read, up to a limit: a small file can hold a thousand times its size."""

    def __init__(self, raw: BinaryIO, limit_bytes: int) -> None:
        self._raw, self._left = raw, limit_bytes
        self._inflate = zlib.decompressobj(wbits=31)
        self._held = bytearray()

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer at the end."""
        while len(self._held) < size and not self._inflate.eof:
            pressed = self._inflate.unconsumed_tail or self._raw.read(_CHUNK_BYTES)
            if not pressed:
                raise EOFError("the archive is cut off")
            inflated = self._inflate.decompress(pressed, _CHUNK_BYTES)
            self._left -= len(inflated)
            if self._left < 0:
                raise EOFError("it inflates to more than a tree may hold")
            self._held += inflated
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken

    def finish(self) -> None:
        """Read to the end, whose checksum covers everything before it."""
        while not self._inflate.eof:
            self.read(_CHUNK_BYTES)
        if self._inflate.unused_data or self._raw.read(1):
            raise EOFError("something follows the end of the archive")


def _revision(file: Path, manifest: bytes | None) -> str | None:
    """The ``revision`` of a manifest, when it names one that can be a commit's name."""
    if manifest is None:
        return None
    try:
        document = orjson.loads(manifest)
    except orjson.JSONDecodeError as error:
        raise SourceRefused(f"{file}: .manifest is no JSON: {error}") from None
    revision = document.get("revision") if isinstance(document, dict) else None
    if not isinstance(revision, str) or not revision:
        return None
    if len(revision) > REVISION_MAX_CHARS or not revision.isprintable():
        raise SourceRefused(f"{file}: the revision in .manifest is no name of at most {REVISION_MAX_CHARS} characters")
    return revision
