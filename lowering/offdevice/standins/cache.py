"""A folder for files that are code: private to the user, whole, and safe to share between starts.

A library from a cache runs with the rights of whoever loads it. So a folder is used only if it
and everything above it can be changed by nobody but the user and root, and a file is loaded only
if it has the bytes that the manifest beside it states.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

_MANIFEST = "manifest.json"
_LEFT_BEHIND = 3600.0
"""Age in seconds from which an unfinished file is taken to be of a start that was killed."""


class CacheUnavailableError(RuntimeError):
    """A folder cannot be used as a cache; ``insecure`` if using it would be dangerous."""

    def __init__(self, message: str, *, insecure: bool = False) -> None:
        super().__init__(message)
        self.insecure = insecure


def default_root() -> Path:
    """Where our files go: ``$XDG_CACHE_HOME/npu-lowering``, or ``~/.cache/npu-lowering``."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is invalid and is to be ignored.
    base = Path(configured)
    return (base if base.is_absolute() else Path.home() / ".cache") / "npu-lowering"


def private_folder(folder: Path) -> Path:
    """Make ``folder`` if it is not there, and see that no one else can change what is in it.

    Returns:
        The folder, with its symbolic links resolved.

    Raises:
        CacheUnavailableError: It cannot be made, or others could change it.
    """
    try:
        _make(folder)
        resolved = folder.resolve(strict=True)
    except OSError as error:
        raise CacheUnavailableError(
            f"{folder} cannot be made or used as a folder ({error.strerror or error}); "
            "set XDG_CACHE_HOME to a folder that you can write to"
        ) from error
    # A link could be turned elsewhere by whoever can write to its folder: check both ways up.
    for path in {folder, resolved}:
        for parent in [*reversed(path.parents), path]:
            _check_owner_and_mode(parent, strict=parent == path)
    if not os.access(resolved, os.W_OK | os.X_OK):
        raise CacheUnavailableError(
            f"{folder} cannot be written to; set XDG_CACHE_HOME to a folder that you can write to"
        )
    return resolved


def _make(folder: Path) -> None:
    for path in [*reversed(folder.parents), folder]:
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError:
            # A parent on a read-only file system may well exist; the last one has to.
            if not path.is_dir():
                raise


def _check_owner_and_mode(path: Path, *, strict: bool) -> None:
    """``path`` is a folder of ours or root's, or a link in one, that others cannot write to."""
    status = path.lstat()
    if strict and stat.S_ISLNK(status.st_mode):
        raise CacheUnavailableError(
            f"{path} must be a folder, it is a symbolic link; remove it", insecure=True
        )
    owners = (os.geteuid(),) if strict else (os.geteuid(), 0)
    if status.st_uid not in owners:
        raise CacheUnavailableError(
            f"{path} must belong to user {os.geteuid()}, who runs this, it belongs to user "
            f"{status.st_uid}; set XDG_CACHE_HOME to a folder of your own",
            insecure=True,
        )
    if stat.S_ISLNK(status.st_mode):
        return
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    # In a sticky folder (/tmp) others can add names but not replace ours.
    if shared and (strict or not status.st_mode & stat.S_ISVTX):
        raise CacheUnavailableError(
            f"{path} must not be writable by others (libraries are loaded from there), its mode "
            f"is {stat.S_IMODE(status.st_mode):o}; run: chmod go-w {path}",
            insecure=True,
        )


def store(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` and then the manifest that makes them count.

    Each file comes into being whole, under its name, by a rename. So a start that is killed, or
    two at once, leave a folder that is either complete or is completed by the next start.

    Raises:
        OSError: A file cannot be written.
    """
    for name, data in files.items():
        _replace(folder / name, data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    _replace(folder / _MANIFEST, json.dumps(digests, indent=1, sort_keys=True).encode())
    for left in folder.glob("*.part"):
        # A killed start left it; one that is young may be of a start that is at work.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _LEFT_BEHIND:
                left.unlink()


def _replace(path: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(".part", f"{path.name}.", path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def whole(folder: Path) -> list[Path] | None:
    """The files of ``folder`` if all are there as the manifest states, else None.

    A file is whole if it is a plain file of this user that no one else can write to and has the
    stated bytes.
    """
    manifest = folder / _MANIFEST
    try:
        if not _is_private(manifest):
            return None
        digests = json.loads(manifest.read_bytes())
        names = sorted(digests)
        if names and all(_is_whole(folder / name, digests[name]) for name in names):
            return [folder / name for name in names]
    except (OSError, ValueError, TypeError):
        return None  # absent, or not a manifest: the caller writes it anew
    return None


def _is_whole(path: Path, digest: str) -> bool:
    return _is_private(path) and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _is_private(path: Path) -> bool:
    status = path.lstat()
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
