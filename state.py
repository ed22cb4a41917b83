"""The mission's memory: one JSON document in one file, written atomically, and one lock per repository.

    with state.Lock(folder / "lock"):
        document = state.load(folder / "api.json")
        state.save(folder / "api.json", document)

A save either happened or did not, also when the power fails in between: it is written whole to a file beside the
old one, synced, and renamed over it. What the document means is the caller's; its shape is schema/state.json.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import json
import os
import time

TYPE_CHECKING = False  # `typing` and `pathlib` cost 10 ms, which `status` does not pay
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

VERSION, OLDER = 4, 3  # of the document; a newer kit's file is refused, never guessed at
MAX_SIZE = 100_000  # bytes; saved answers, then the oldest history are dropped above this; it lives on in the totals
LEAST_HISTORY = 10  # entries that are kept whatever the size
PATIENCE = 1.0  # seconds for which those who only ask for the lock's holder can keep it from us
# A password like `password` may be part of a name; masked, the name would name nothing.
VERBATIM = [
    "mission",
    "mission_id",
    "settings",
    "repository",
    "branch",
    "start_branch",
    "completed_tasks",
    "pending_tasks",
]
# Why no key can be kept at all, other than for now.
NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
SCHEMA = os.path.join(os.path.dirname(os.path.realpath(__file__)), "schema", "state.json")


class StateError(Exception):
    """The file cannot be read as a state: damaged, of another version, or of the wrong shape."""


class Forged(StateError):
    """The file was changed by somebody who does not have the key that it was sealed with."""


class Busy(Exception):
    """Another orchestrator holds the lock. `holder` is what it wrote about itself, for people only."""

    def __init__(self, holder: dict[str, Any]):
        super().__init__(f"another orchestrator works here: pid {holder.get('pid', '?')}")
        self.holder = holder


# --------------------------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------------------------


def load(path: Path | str, validate: bool = True, sealed: bool = True) -> dict[str, Any]:
    """The document in the file. validate=False (for a quick look) skips the schema, sealed=False the seal.

    Raises StateError with the file and the reason for anything that `save` did not write (Forged for what somebody
    else wrote in its shape), OSError if unreadable.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
        document = json.loads(data, object_pairs_hook=_no_duplicates, parse_constant=_number, parse_float=_number)
        if isinstance(document, dict) and document.get("version") == OLDER:
            document = _upgraded(document, path, sealed)
        if not isinstance(document, dict) or document.get("version") != VERSION:
            found = document.get("version") if isinstance(document, dict) else type(document).__name__
            raise StateError(f"{path}: expected a state of version {VERSION}, found {found!r:.50}")
        if validate:
            _check_shape(document, path)
        if sealed:
            _check_seal(document, path)
    except (ValueError, RecursionError) as error:  # ValueError: also bad UTF-8 and integers of 5000 digits
        raise StateError(f"{path}: not a readable state: {error}") from error
    return document


def _upgraded(before: dict[str, Any], path: Path | str, sealed: bool) -> dict[str, Any]:
    """A document of the version before, with what it could not know yet as it is at a mission's beginning.

    So a kit that is replaced in the middle of a mission forgets no cost, no verdict and no person's word.
    """
    if sealed:
        _check_seal(before, path)
    was_sealed = is_sealed(before)  # what is in it is changed below
    nobody = {"failures": 0, "since": 0, "until": 0, "useless": 0}
    document = {**before, "version": VERSION, "manager": nobody, "judge": dict(nobody), "answers": {}}
    try:
        for known in document["criteria"].values():
            known.update(failed=[], cost_usd=0.0)
        for entry in document["history"]:
            entry["manager_usd"] = 0.0
        document["metrics"].update(api_calls_avoided=0, calls_of_unknown_cost=0, manager_cost=0)
        if plan := document["plan"]:
            kept = {name: value for name, value in plan.items() if name not in ("tokens", "unreachable")}
            document["plan"] = {**kept, "tier": None, "encouragement": None}
    except (KeyError, AttributeError, TypeError) as error:
        raise StateError(f"{path}: not a readable state of version {OLDER}: {error}") from error
    return {**document, "seal": _seal(document)} if was_sealed else document


def save(path: Path, document: dict[str, Any]) -> str:
    """Write the document durably, masked except for what the next start depends on to the letter; its SHA-256.

    Raises OSError. Before the rename nothing has changed. After it (only the directory's sync can fail then) the
    new state is in place, but may not survive a power cut: do not repeat what it records, save again or stop.
    """
    document["version"] = VERSION
    history = document.get("history", [])
    while len(text := _text(document)) > MAX_SIZE:
        if document.get("answers"):
            document["answers"].clear()  # which cost little to ask for again
        elif (spare := len(history) - LEAST_HISTORY) > 0:
            del history[: min(spare, 1 + int(len(history) * (1 - MAX_SIZE / len(text))))]
        else:
            break
    write(path, text)
    return hashlib.sha256(text).hexdigest()


def write(path: Path, content: bytes) -> None:
    """Replace a file as `save` does, readable for its owner alone. Raises OSError, see there."""
    import tempfile  # with `log` 15 ms, which a reader of the state does not pay

    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    _sync_folder(path.parent)


def remove_stale(folder: Path) -> None:
    """Remove what a killed `save` left behind. Only under the lock."""
    for stale in folder.glob(".*.tmp"):
        stale.unlink(missing_ok=True)


def _text(document: dict[str, Any]) -> bytes:
    import log

    shown = {key: value if key in VERBATIM else log.mask_tree(value) for key, value in document.items()}
    shown = {"version": VERSION, **shown}
    return _dump({**shown, "seal": _seal(shown)})


def _dump(document: dict[str, Any]) -> bytes:
    lines = (f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in document.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


# --------------------------------------------------------------------------------------------------------
# The seal
# --------------------------------------------------------------------------------------------------------


def is_sealed(document: dict[str, Any]) -> bool:
    """Whether this machine's key proves that the kit wrote it; not so where the state came from another machine."""
    return bool(document.get("seal")) and document["seal"] == _seal(document)


def _check_seal(document: dict[str, Any], path: Path | str) -> None:
    """Raise Forged for a document that our key did not seal; without a key, it may be another machine's."""
    if os.path.exists(key_path()) and (ours := _seal(document)) and document.get("seal") != ours:
        raise Forged(f"{path}: it was changed by somebody else than CCO, or comes from another user or machine")


def _seal(document: dict[str, Any]) -> str:
    """The HMAC of all but the seal; "" where no key can be kept."""
    if not (key := _key()):
        return ""
    text = _dump({name: value for name, value in document.items() if name != "seal"})
    return hmac.new(key, text, "sha256").hexdigest()


def _key() -> bytes:
    """This user's key, made when first needed, where no worker in its sandbox and no check can read it.

    b"" where none can be kept. Raises OSError for a passing reason not to get it: unsealed, the state would be forged.
    """
    path = key_path()
    try:
        return _read(path) or _make_key(path)
    except OSError as error:
        if error.errno in NO_PLACE:
            return b""
        raise


def key_path() -> str:
    """Where this user's key is, or will be."""
    return os.path.abspath(
        os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "cco", "key")
    )


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _make_key(path: str) -> bytes:
    """Whoever gets the lock first makes it; nobody takes one that is half written."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (key := file.read()):
            key = os.urandom(32)
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
    return key


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync a folder
            raise
    finally:
        os.close(handle)


def _check_shape(document: dict[str, Any], path: Path | str) -> None:
    from jsonschema import Draft202012Validator

    with open(SCHEMA, encoding="utf-8") as file:
        validator = Draft202012Validator(json.load(file))
    for problem in validator.iter_errors(document):
        raise StateError(f"{path}: {problem.json_path}: {problem.message[:200]}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _number(text: str) -> float:
    if not float("-inf") < (number := float(text)) < float("inf"):
        raise ValueError(f"{text[:20]} is no number")
    return number


# --------------------------------------------------------------------------------------------------------
# The lock
# --------------------------------------------------------------------------------------------------------


class Lock:
    """Held while an orchestrator runs. The kernel frees it when the holder dies, however it dies.

    The file is never removed or replaced, or two could each hold a lock of their own; what is written in it is
    for people, and nothing is ever decided by it.
    """

    def __init__(self, path: Path, about: dict[str, Any]):
        """path: the lock file, made if missing. about: what to tell whoever finds the lock taken."""
        self.path, self.about = path, about
        self.handle = -1

    def __enter__(self) -> Lock:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if not self._take(handle):
                raise Busy(holder(self.path) or {})
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(self.about).encode(), 0)
        except BaseException:
            os.close(handle)
            raise
        self.handle = handle
        return self

    def _take(self, handle: int) -> bool:
        end = time.monotonic() + PATIENCE
        while not _flock(handle, fcntl.LOCK_EX):
            if not _flock(handle, fcntl.LOCK_SH) or time.monotonic() > end:
                return False  # an orchestrator has it
            _flock(handle, fcntl.LOCK_UN)  # a `holder` of a curious process has it, for a moment
            time.sleep(0.001)
        return self._is_there(handle)

    def keep(self) -> None:
        """Take it anew where the file was removed or replaced under us. Raises Busy when another one was faster."""
        if self.handle >= 0 and not self._is_there(self.handle):
            lost = self.handle
            self.__enter__()
            os.close(lost)

    def _is_there(self, handle: int) -> bool:
        return os.path.exists(self.path) and os.path.samestat(os.fstat(handle), os.stat(self.path))

    def __exit__(self, *_: object) -> None:
        try:
            os.ftruncate(self.handle, 0)
        except OSError:  # the disk is read-only by now; what is written in it is for people only
            pass
        os.close(self.handle)


def _flock(handle: int, operation: int) -> bool:
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(path: Path | str) -> dict[str, Any] | None:
    """Who holds the lock, by its own words; None when nobody does. For showing, not for deciding."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        if _flock(handle, fcntl.LOCK_SH):
            return None
        return dict(json.loads(os.read(handle, 10_000)))
    except (OSError, ValueError, TypeError):  # the holder has not written it yet, or somebody else did
        return {}
    finally:
        os.close(handle)
