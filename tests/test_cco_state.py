"""The memory: what is read is what was written, whatever happens in between; and one orchestrator at a time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT, need

import log
import state

SECRET = "Zk9-planted+value/4711=="
SCHEMA = json.loads((KIT / "schema" / "state.json").read_text())


def smallest(schema: dict[str, Any]) -> Any:
    """The smallest value that a schema allows."""
    if "$ref" in schema:
        return smallest(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    kinds = {"string": "x" * schema.get("minLength", 1), "integer": 0, "number": 0.5, "boolean": False, "array": []}
    kind = schema["type"] if isinstance(schema["type"], str) else schema["type"][-1]
    if kind == "object":
        return {
            name: smallest(schema.get("properties", {}).get(name, {"type": "string"}))
            for name in schema.get("required", ())
        }
    return kinds.get(kind)


def document(**changes: Any) -> dict[str, Any]:
    """A state as the schema wants it, with these values in it."""
    return {**smallest(SCHEMA), **changes}


def unsealed(loaded: dict[str, Any]) -> dict[str, Any]:
    """What was saved, of a document that bears our seal."""
    assert state.is_sealed(loaded)
    return {name: value for name, value in loaded.items() if name != "seal"}


@pytest.fixture
def path(tmp_path) -> Path:
    (tmp_path / "of a mission").mkdir()
    return tmp_path / "of a mission" / "api.json"


def run(code: str, *args: object, shell: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run Python with the kit's state in a process of its own."""
    argv = [
        *shell,
        sys.executable,
        "-IB",
        "-c",
        f"import sys\nsys.path.insert(0, {str(KIT)!r})\n{code}",
        *map(str, args),
    ]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


# --------------------------------------------------------------------------------------------------------
# Reading and writing
# --------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(path):
    saved = document(plan={"instruction": "ä € \U0001f600 \n\0", "deep": [[{"n": 0.1, "big": 2**70}]]}, wait_until=1.5)
    state.save(path, saved)
    assert unsealed(state.load(path)) == saved
    assert unsealed(state.load(str(path), validate=False)) == saved


def test_lone_surrogates_survive(path):
    state.save(path, document(plan={"half": "\ud83d", "bytes": os.fsdecode(b"\xff")}))
    assert state.load(path)["plan"] == {"half": "\ud83d", "bytes": "\udcff"}


def test_the_version_comes_first_whatever_was_given(path):
    state.save(path, {**document(), "version": 99})
    assert path.read_bytes().startswith(b'{\n"version": 4,\n')
    assert state.load(path)["version"] == 4


def test_the_file_is_plain_ascii_and_its_owners_alone(path):
    before = os.umask(0)
    try:
        state.save(path, document(plan={"a": "ä"}))
    finally:
        os.umask(before)
    assert path.read_bytes().isascii()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_could_not_be_read_back_is_not_written(path, number):
    state.save(path, document(iterations=1))
    with pytest.raises(ValueError, match="not JSON compliant"):
        state.save(path, document(wait_until=number))
    assert state.load(path)["iterations"] == 1
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: b"", "not a readable state"),
        (lambda text: text[:-5], "not a readable state"),
        (lambda text: text[: len(text) // 2], "not a readable state"),
        (lambda text: text + b"{}", "not a readable state"),
        (lambda text: b"\0" * len(text), "not a readable state"),
        (lambda text: text.replace(b'"version"', b'"iterations": 5, "version"'), "a key stands twice"),
        (lambda text: text.replace(b'"iterations": 0', b'"iterations": NaN'), "NaN is no number"),
        (lambda text: text.replace(b'"wait_until": null', b'"wait_until": -Infinity'), "-Infinity is no number"),
        (lambda text: text.replace(b'"wait_until": null', b'"wait_until": 1e999'), "1e999 is no number"),
        (lambda text: text.replace(b'"iterations": 0', b'"iterations": ' + b"9" * 5000), "not a readable state"),
        (lambda text: text.replace(b'"plan": null', b'"plan": {"a": "\xff\xfe"}'), "not a readable state"),
        (
            lambda text: text.replace(b'"plan": null', b'"plan": ' + b"[" * 100_000 + b"]" * 100_000),
            "not a readable state",
        ),
        (lambda text: text.replace(b'"version": 4', b'"version": 5'), "expected a state of version 4, found 5"),
        (lambda text: text.replace(b'"version": 4', b'"version": "3"'), "expected a state of version 4, found '3'"),
        (lambda text: text.replace(b'"version": 4,', b""), "expected a state of version 4, found None"),
        (lambda text: b"[" + text + b"]", "expected a state of version 4, found 'list'"),
        (lambda text: b"null", "expected a state of version 4, found 'NoneType'"),
        (lambda text: b'"version"', "expected a state of version 4, found 'str'"),
    ],
    ids=[
        *(
            "empty",
            "its end cut off",
            "half",
            "twice",
            "zeros",
            "duplicate key",
            "NaN",
            "infinity",
            "too large a float",
        ),
        *("5000 digits", "bad UTF-8", "deep", "newer", "version as text", "no version", "a list", "null", "text"),
    ],
)
@pytest.mark.parametrize("validate", [True, False])
def test_a_damaged_file_is_one_error_that_names_it(path, damage, reason, validate):
    state.save(path, document(wait_until=None, plan=None))
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(state.StateError, match=re.escape(reason)) as caught:
        state.load(path, validate=validate)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_any_depth_is_read_or_is_one_error(path):
    outcomes = set()
    state.save(path, document())
    whole = path.read_bytes()
    for depth in [*range(100, 1100, 10), *range(1100, 20_000, 500)]:
        deep = b'"iterations": ' + b"[" * depth + b"]" * depth
        path.write_bytes(whole.replace(b'"iterations": 0', deep))
        for validate in (True, False):
            try:
                state.load(path, validate=validate, sealed=False)
                outcomes.add("read")
            except state.StateError as error:
                outcomes.add("not a readable state" in str(error))
    assert outcomes == {"read", True, False}


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"current_phase": "dancing"}, "$.current_phase"),
        ({"iterations": -1}, "$.iterations"),
        ({"iterations": "3"}, "$.iterations"),
        ({"mission_id": "../etc"}, "$.mission_id"),
        ({"session_id": "short"}, "$.session_id"),
        ({"criteria": {"api": {"verdict": "met"}}}, "$.criteria.api"),
        ({"artifacts": [{"path": "a", "type": "virus", "version": ""}]}, "$.artifacts[0].type"),
        ({"artifacts": [{}]}, "$.artifacts[0]"),
        ({"worker": []}, "$.worker"),
        ({"plan": "x"}, "$.plan"),
        ({"history": [{"iteration": 1, "kind": "ended"}] * 201}, "$.history"),
    ],
)
def test_a_state_of_the_wrong_shape_is_refused_and_a_quick_look_is_not(path, changes, where):
    state.save(path, document(**changes))
    with pytest.raises(state.StateError, match=re.escape(f"{path}: {where}: ")):
        state.load(path)
    assert state.load(path, validate=False)["version"] == 4


@pytest.mark.parametrize("missing", SCHEMA["required"][1:])
def test_a_state_with_a_part_missing_is_refused(path, missing):
    whole = document()
    del whole[missing]
    state.save(path, whole)
    with pytest.raises(state.StateError, match=f"'{missing}' is a required property"):
        state.load(path)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "a folder"])
def test_a_file_that_cannot_be_read_is_no_damaged_state(path, make):
    make(path)
    with pytest.raises(OSError, match=re.escape(path.name)):
        state.load(path)


def test_a_state_is_masked_except_for_what_the_next_start_depends_on(path, fresh_mask):
    log.know_value("passw0rd")
    log.know_value(SECRET)
    named = {"mission_id": "passw0rd-reset", "repository": "/srv/passw0rd", "branch": "cco/passw0rd-reset"}
    named |= {"completed_tasks": ["passw0rd"], "pending_tasks": ["passw0rd-2"]}
    mission = {**smallest(SCHEMA["properties"]["mission"]), "text": f"the password is {SECRET}"}
    saved = document(
        **named, mission=mission, plan={"instruction": f"try {SECRET}", "list": [{"passw0rd": "passw0rd"}]}
    )
    state.save(path, saved)
    loaded = state.load(path)
    assert {key: loaded[key] for key in named} == named
    assert loaded["mission"] == mission
    assert loaded["plan"] == {"instruction": "try ***", "list": [{"passw0rd": "***"}]}
    assert saved["plan"]["instruction"] == f"try {SECRET}"
    assert path.read_text().count(SECRET) == 1


def test_a_state_stays_small_however_long_the_mission_runs(path):
    entry = {"kind": "ended", "title": "Make the first test green", "verdicts": {"api": "unmet"}, "failure": "x" * 100}
    saved = document(history=[{"iteration": n, **entry} for n in range(10_000)])
    state.save(path, saved)
    assert path.stat().st_size <= state.MAX_SIZE
    kept = [item["iteration"] for item in saved["history"]]
    assert kept == list(range(10_000 - len(kept), 10_000))
    assert path.stat().st_size > state.MAX_SIZE * 0.9
    for n in range(10_000, 10_020):
        saved["history"].append({"iteration": n, **entry})
        state.save(path, saved)
        assert path.stat().st_size <= state.MAX_SIZE
    assert state.load(path, validate=False)["history"] == saved["history"]
    assert saved["history"][-1]["iteration"] == 10_019


def test_a_mission_larger_than_the_limit_is_saved_whole_with_the_latest_of_its_history(path):
    history = [{"iteration": n, "kind": "ended"} for n in range(50)]
    saved = document(mission={**smallest(SCHEMA["properties"]["mission"]), "text": "x" * 200_000}, history=history)
    state.save(path, saved)
    assert unsealed(state.load(path)) == saved
    assert [entry["iteration"] for entry in saved["history"]] == list(range(40, 50))


def test_what_a_killed_save_left_is_removed_and_nothing_else(path):
    keep = ["api.json", "config.yaml", ".gitignore", "lock", "x.tmp", ".tmp"]
    for name in [*keep, ".api.json.abc123.tmp", ".other.json.x.tmp"]:
        (path.parent / name).touch()
    state.remove_stale(path.parent)
    assert {file.name for file in path.parent.iterdir()} == set(keep)


def test_a_state_that_is_a_link_is_replaced_and_its_target_left_alone(path, tmp_path):
    (tmp_path / "target").write_text("precious")
    path.symlink_to(tmp_path / "target")
    state.save(path, document())
    assert (tmp_path / "target").read_text() == "precious"
    assert not path.is_symlink()


# --------------------------------------------------------------------------------------------------------
# The seal
# --------------------------------------------------------------------------------------------------------


@pytest.fixture
def key(tmp_path, monkeypatch) -> Path:
    """Where the key of this test alone is kept; nothing is there yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state home"))
    return tmp_path / "state home" / "cco" / "key"


def test_what_is_saved_is_sealed_and_the_digest_is_that_of_the_file(path, key):
    digest = state.save(path, document())
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = state.load(path)
    assert re.fullmatch("[0-9a-f]{64}", loaded["seal"])
    assert state.is_sealed(loaded)
    assert state.save(path, loaded) == digest
    assert key.read_bytes() not in path.read_bytes()
    assert key.read_bytes().hex() not in path.read_text()


def test_a_document_that_was_changed_since_it_was_loaded_is_not_sealed(path):
    state.save(path, document())
    loaded = state.load(path)
    loaded["iterations"] = 5
    assert not state.is_sealed(loaded)
    state.save(path, loaded)
    assert state.is_sealed(state.load(path))


def test_a_byte_that_is_changed_anywhere_is_noticed_unless_the_document_stays_the_same(path):
    state.save(path, document(plan={"ä": [1.5, True, None, "x"]}, wait_until=0.25))
    whole, saved = path.read_bytes(), state.load(path)
    forged = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] = damaged[place] + 1 if whole[place] != ord("9") else ord("0")
        path.write_bytes(damaged)
        try:
            loaded = state.load(path)
        except state.StateError as error:
            forged += isinstance(error, state.Forged)
            continue
        assert loaded == saved or not state.is_sealed(loaded), f"byte {place}: {whole[place : place + 20]!r}"
    assert forged > len(whole) / 10


def version_3(path: Path) -> dict[str, Any]:
    """A state as the version before wrote it, sealed."""
    known = smallest(SCHEMA["properties"]["criteria"]["additionalProperties"])
    known = {name: value for name, value in known.items() if name not in ("failed", "cost_usd")}
    plan = {"focus": "api", "title": "Make it", "cost_usd": 0.5, "tokens": {"input": 1}, "unreachable": False}
    old = document(criteria={"api": known}, plan=plan, history=[{"iteration": 1, "kind": "ended"}])
    old |= {"version": 3, "manager": {"failures": 2, "until": 0}, "metrics": {"estimated_cost": 7.5}}
    old = {name: value for name, value in old.items() if name not in ("judge", "answers", "seal")}
    old["seal"] = state._seal(old)
    path.write_bytes(state._dump(old))
    return old


def test_a_state_of_the_version_before_is_gone_on_with_and_forgets_no_cost(path):
    version_3(path)
    found = state.load(path)
    assert state.is_sealed(found)
    assert (found["version"], found["metrics"]["estimated_cost"], found["metrics"]["manager_cost"]) == (4, 7.5, 0)
    assert found["criteria"]["api"]["failed"] == [] and found["history"][0]["manager_usd"] == 0
    assert found["plan"] == {
        "focus": "api", "title": "Make it", "cost_usd": 0.5, "tier": None, "encouragement": None,
    }  # fmt: skip
    state.save(path, found)
    assert state.load(path)["version"] == 4


def test_a_state_of_the_version_before_that_somebody_changed_is_forged_as_well(path):
    old = version_3(path)
    path.write_bytes(state._dump({**old, "iterations": 9}))
    with pytest.raises(state.Forged):
        state.load(path)
    assert not state.is_sealed(state.load(path, sealed=False))


def test_a_damaged_state_of_the_version_before_is_one_error(path):
    old = version_3(path)
    path.write_bytes(state._dump({**old, "criteria": {"api": 5}}))
    with pytest.raises(state.StateError, match="not a readable state of version 3"):
        state.load(path, sealed=False)


@pytest.mark.parametrize(
    "change",
    [
        {"iterations": 7},
        {"metrics": {"estimated_cost": 0}},
        {"current_phase": "completed"},
        {"completed_tasks": ["api"]},
        {"sealed": "0" * 40},
        {"something": "more"},
    ],
)
def test_whoever_edits_the_file_without_the_key_is_found_out(path, change):
    state.save(path, document())
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(state.Forged, match="it was changed by somebody else than CCO") as caught:
        state.load(path)
    assert str(path) in str(caught.value)
    assert state.load(path, sealed=False)["version"] == 4


def test_keys_in_another_order_are_a_change(path):
    state.save(path, document())
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    with pytest.raises(state.Forged):
        state.load(path)


def test_another_layout_of_the_same_document_is_none(path):
    state.save(path, document())
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    assert state.is_sealed(state.load(path))


@pytest.mark.parametrize("seal", [None, "", ":", "0" * 64])
def test_a_seal_that_was_taken_off_is_no_way_around_it(path, seal):
    state.save(path, document())
    found = {name: value for name, value in json.loads(path.read_text()).items() if name != "seal"}
    path.write_text(json.dumps({**found, **({} if seal is None else {"seal": seal})}))
    with pytest.raises(state.Forged):
        state.load(path)


def test_a_state_of_another_machine_is_loaded_but_proves_nothing(path, key):
    state.save(path, document(iterations=3))
    key.unlink()
    loaded = state.load(path)
    assert loaded["iterations"] == 3
    assert not state.is_sealed(loaded)
    state.save(path, loaded)
    assert state.is_sealed(state.load(path))


@pytest.mark.parametrize("blocked", ["a file", "a file above", "a folder of its name"])
def test_where_no_key_can_be_kept_it_works_without_a_seal(path, tmp_path, key, blocked):
    if blocked == "a folder of its name":
        key.mkdir(parents=True)
    else:
        place = key.parent if blocked == "a file" else key.parent.parent
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("no folder")
    digest = state.save(path, document())
    loaded = state.load(path)
    assert loaded == {**document(), "seal": ""}
    assert not state.is_sealed(loaded)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_key_lies_in_the_home_directory_where_nothing_else_is_said(path, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    state.save(path, document())
    assert len((tmp_path / "home/.local/state/cco/key").read_bytes()) == 32


def test_the_key_is_made_once_and_is_its_owners_alone(path, key):
    before = os.umask(0)
    try:
        state.save(path, document())
    finally:
        os.umask(before)
    made = key.read_bytes()
    assert len(made) == 32
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    state.save(path, document())
    assert key.read_bytes() == made


def test_a_key_that_was_not_written_before_the_power_failed_is_made_again(path, key):
    key.parent.mkdir(parents=True)
    key.touch(mode=0o600)
    state.save(path, document())
    assert len(key.read_bytes()) == 32
    assert state.is_sealed(state.load(path))


def test_a_key_that_cannot_be_read_just_now_leaves_the_old_state(path, key, monkeypatch):
    """Saved without a seal, it would be taken for a forged one at the next start."""

    def exhausted(*_: object) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    state.save(path, document(iterations=1))
    with monkeypatch.context() as machine:
        machine.setattr(state, "open", exhausted, raising=False)
        with pytest.raises(OSError, match="Too many open files"):
            state.save(path, document(iterations=2))
    assert unsealed(state.load(path)) == document(iterations=1)


FIRST = """
import json, state
from pathlib import Path
folder, name = Path(sys.argv[1]), sys.argv[2]
document = json.loads((folder / "document").read_text())
print("ready", flush=True)
sys.stdin.readline()
state.save(folder / f"{name}.json", document)
print(state.is_sealed(state.load(folder / f"{name}.json")))
"""


def test_of_several_that_start_at_the_same_time_all_have_the_same_key(tmp_path, key):
    (tmp_path / "document").write_text(json.dumps(document()))
    command = [sys.executable, "-IB", "-c", f"import sys\nsys.path.insert(0, {str(KIT)!r})\n{FIRST}", str(tmp_path)]
    for number in range(5):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started = [subprocess.Popen([*command, f"{number}-{n}"], **pipes) for n in range(4)]
        for process in started:
            assert process.stdout.readline() == "ready\n"
        for process in started:
            process.stdin.write("\n")
            process.stdin.flush()
        assert [process.communicate(timeout=60) for process in started] == [("True\n", "")] * 4
        assert all(state.is_sealed(state.load(tmp_path / f"{number}-{n}.json")) for n in range(4))
        key.unlink()


# --------------------------------------------------------------------------------------------------------
# Faults: fail at every point until it runs through; what is on disk is always a whole document
# --------------------------------------------------------------------------------------------------------


class Faults:
    """Makes the nth call that a save makes to the system fail, or that and all later ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nth: int, error: BaseException, for_good: bool):
        self.calls: list[str] = []
        self.nth, self.error, self.for_good = nth, error, for_good
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "open"), (tempfile, "mkstemp")):
            monkeypatch.setattr(owner, name, self.failing(name, getattr(owner, name)))
        monkeypatch.setattr(state, "open", self.open, raising=False)

    def hit(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self.nth or (self.for_good and len(self.calls) > self.nth):
            raise self.error

    def failing(self, name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.hit(name)
            return real(*args, **kwargs)

        return call

    def open(self, handle: Any, mode: str) -> Any:
        hit = self.hit
        if mode == "rb":
            hit("key")
            return open(handle, mode)

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                hit("write")
                return super().write(data)

            def close(self) -> None:
                if not self.closed:
                    super().close()
                    hit("close")

        return io.BufferedWriter(Raw(handle, mode), buffer_size=100)


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()],
    ids=["full", "broken", "interrupted"],
)
def test_a_save_that_fails_anywhere_leaves_the_old_or_the_new_state(path, monkeypatch, error, for_good):
    old, new = document(iterations=1), document(iterations=2)
    for nth in range(1, 100):
        state.save(path, old)
        with monkeypatch.context() as machine:
            faults = Faults(machine, nth, error, for_good)
            try:
                state.save(path, new)
                raised = False
            except type(error):
                raised = True
        assert raised == (len(faults.calls) >= nth)
        renamed = "replace" in faults.calls[: len(faults.calls) if not raised else nth - 1]
        assert unsealed(state.load(path)) == (new if renamed else old)
        assert list(path.parent.iterdir()) == [path]
        if not raised:
            break
    assert set(faults.calls) == {"key", "mkstemp", "open", "write", "fsync", "close", "replace"}
    assert faults.calls[-4:] == ["close", "replace", "open", "fsync"]
    assert faults.calls.index("fsync") > max(n for n, name in enumerate(faults.calls) if name == "write")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_a_folder_will_do(path, monkeypatch, number):
    real, folders = os.fsync, []

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            folders.append(handle)
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    state.save(path, document())
    assert folders
    assert unsealed(state.load(path)) == document()


SAVE = """
import json, log, os, state, tempfile
from pathlib import Path
path = Path(sys.argv[1])
new = {**json.loads(path.read_text()), "iterations": 2}
tempfile.TemporaryFile().close()  # so that the save itself has nothing left to look up
try: os.stat("/the save begins")
except OSError: pass
state.save(path, new)
try: os.stat("/the save ends")
except OSError: pass
"""


def strace(path: Path, *options: str) -> tuple[int, list[str]]:
    """Save under strace; the exit code and what was traced."""
    trace = path.parent.parent / "trace"
    done = run(SAVE, path, shell=("strace", "-f", "-o", str(trace), *options))
    return done.returncode, trace.read_text(errors="replace").splitlines()


def calls_of_a_save(trace: list[str]) -> list[tuple[str, int]]:
    """The system calls between the marks, each with its number among those of its name in the whole run."""
    counts: dict[str, int] = {}
    found, inside = [], False
    for line in trace:
        if not (call := re.match(r"\d+ +(\w+)\(", line)):
            continue
        counts[call[1]] = counts.get(call[1], 0) + 1
        inside = "/the save ends" not in line and (inside or "/the save begins" in line)
        if inside and "/the save begins" not in line:
            found.append((call[1], counts[call[1]]))
    return found


def test_a_save_that_is_killed_anywhere_leaves_the_old_or_the_new_state(path):
    need(shutil.which("strace"), "strace is not installed")
    state.save(path, document(iterations=1))
    code, trace = strace(path, "-e", "trace=file,desc")
    need(code == 0, f"strace cannot trace here: {trace[-1:]}")
    calls = calls_of_a_save(trace)
    assert {"fsync", "write", "close"} <= {name for name, _ in calls}
    seen = []
    for name, nth in calls:
        for leftover in path.parent.glob(".*"):
            leftover.unlink()
        state.save(path, document(iterations=1))
        code, trace = strace(path, "-e", "trace=file,desc", "-e", f"inject={name}:signal=KILL:when={nth}")
        assert any("+++ killed by SIGKILL +++" in line for line in trace), f"nothing was injected into {name} {nth}"
        assert code == -signal.SIGKILL
        left = [file.name for file in path.parent.iterdir() if file != path]
        seen.append((state.load(path)["iterations"], len(left)))
        assert all(re.fullmatch(r"\.api\.json\..*\.tmp", name) for name in left)
        state.remove_stale(path.parent)
        assert list(path.parent.iterdir()) == [path]
    legal = [(1, 0), (1, 1), (2, 0)]  # in this order: nothing done, a file beside the old one, the new one in place
    assert sorted(seen) == sorted(seen, key=legal.index) == seen
    assert set(seen) == set(legal)


FULL = """
import json, os, state
from pathlib import Path
path = Path(sys.argv[1])
document = json.loads(path.read_text())
{limit}
try:
    state.save(path, {{**document, "iterations": 2, "plan": {{"x": "x" * 80_000}}}})
except OSError as error:
    print(os.strerror(error.errno))
print(state.load(path)["iterations"], os.listdir(path.parent))
"""


def test_a_file_size_limit_leaves_the_old_state(path):
    state.save(path, document(iterations=1))
    done = run(FULL.format(limit="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))"), path)
    assert done.stdout == "File too large\n1 ['api.json']\n", done.stderr


def test_a_full_disk_leaves_the_old_state(path, tmp_path):
    (small := tmp_path / "small").mkdir()
    tmpfs = 'mount -t tmpfs -o size=64k tmpfs "$1" && cp "$2" "$1" && shift 2 && exec "$@"'
    shell = ("unshare", "-Urm", "sh", "-c", tmpfs, "-", str(small), str(path))
    state.save(path, document(iterations=1))
    probe = subprocess.run([*shell, "true"], capture_output=True, check=False) if shutil.which("unshare") else None
    need(probe and probe.returncode == 0, "no user namespace with a small disk can be made here")
    done = run(FULL.format(limit=""), small / path.name, shell=shell)
    assert done.stdout == "No space left on device\n1 ['api.json']\n", done.stderr


# --------------------------------------------------------------------------------------------------------
# The lock
# --------------------------------------------------------------------------------------------------------

HOLD = """
import state, subprocess
from pathlib import Path
with state.Lock(Path(sys.argv[1]), {"pid": 4711, "mission": "api"}):
    child = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    sys.stdin.read()
child.kill()
child.wait()
"""


@pytest.fixture
def lock(tmp_path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def other(lock) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock, and that has a child; ends when its input ends."""
    argv = [sys.executable, "-IB", "-c", f"import sys\nsys.path.insert(0, {str(KIT)!r})\n{HOLD}", str(lock)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    child = int(process.stdout.readline())
    yield process
    process.communicate(timeout=30)
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        pass


def test_a_second_orchestrator_is_told_who_works_here(lock, other):
    with pytest.raises(state.Busy, match="pid 4711") as caught, state.Lock(lock, {"pid": 1}):
        pass
    assert caught.value.holder == {"pid": 4711, "mission": "api"}
    assert state.holder(lock) == {"pid": 4711, "mission": "api"}


def test_the_lock_is_free_after_its_holder(lock, other):
    other.communicate(timeout=30)
    assert state.holder(lock) is None
    with state.Lock(lock, {"pid": 1}):
        assert state.holder(lock) == {"pid": 1}
    assert state.holder(lock) is None
    assert lock.read_bytes() == b""
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600


def test_a_killed_holder_frees_the_lock_at_once_and_its_child_does_not_keep_it(lock, other):
    other.kill()
    other.wait()
    assert state.holder(lock) is None
    with state.Lock(lock, {"pid": 2}):
        assert state.holder(lock) == {"pid": 2}


def test_an_error_under_the_lock_frees_it(lock):
    with pytest.raises(RuntimeError), state.Lock(lock, {}):
        raise RuntimeError
    with state.Lock(lock, {}):
        pass


def test_the_same_process_does_not_get_it_twice(lock):
    with state.Lock(lock, {"pid": 1}), pytest.raises(state.Busy), state.Lock(lock, {}):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"5", b"[[]]", b"\xff", b"null", b'"text"', b"[1]"])
def test_what_stands_in_the_lock_file_decides_nothing(lock, content):
    lock.write_bytes(content)
    assert state.holder(lock) is None
    with state.Lock(lock, {"pid": 1}):
        lock.write_bytes(content)
        assert state.holder(lock) == {}
        with pytest.raises(state.Busy, match=re.escape("pid ?")), state.Lock(lock, {}):
            pass


def test_a_lock_that_was_never_taken_has_no_holder(lock):
    assert state.holder(lock) is None
    assert not lock.exists()


def test_a_full_disk_does_not_leave_the_lock_taken(lock, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as machine:
        machine.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"), state.Lock(lock, {}):
            pass
    with state.Lock(lock, {}):
        pass


@pytest.mark.parametrize("replace", [False, True], ids=["removed", "replaced"])
def test_a_lock_file_that_is_not_there_any_more_locks_nothing(lock, monkeypatch, replace):
    """Between opening and locking, somebody removes the file; another orchestrator may hold a new one."""
    real = state._flock

    def slow(handle: int, operation: int) -> bool:
        lock.unlink()
        if replace:
            lock.touch()
        monkeypatch.setattr(state, "_flock", real)
        return real(handle, operation)

    monkeypatch.setattr(state, "_flock", slow)
    with pytest.raises(state.Busy), state.Lock(lock, {}):
        pass
    with state.Lock(lock, {}):
        pass


CURIOUS = """
import state
from pathlib import Path
print("ready", flush=True)
while Path(sys.argv[2]).exists():
    state.holder(Path(sys.argv[1]))
"""


def test_those_who_only_ask_never_keep_an_orchestrator_out(lock, tmp_path):
    lock.touch()
    (tmp_path / "go on").touch()
    argv = [
        sys.executable,
        "-IB",
        "-c",
        f"import sys\nsys.path.insert(0, {str(KIT)!r})\n{CURIOUS}",
        lock,
        tmp_path / "go on",
    ]
    asking = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(4)]
    try:
        for process in asking:
            assert process.stdout and process.stdout.readline()
        for _ in range(200):
            with state.Lock(lock, {"pid": 1}):
                pass
    finally:
        (tmp_path / "go on").unlink()
        for process in asking:
            process.communicate(timeout=30)


@pytest.fixture
def asked(lock) -> Iterator[int]:
    """The lock as `holder` of another process has it for a moment: shared."""
    handle = os.open(lock, os.O_RDONLY | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_SH)
    yield handle
    os.close(handle)


def test_an_orchestrator_waits_for_those_who_only_ask(lock, asked):
    timer = threading.Timer(0.3, fcntl.flock, (asked, fcntl.LOCK_UN))
    timer.start()
    with state.Lock(lock, {"pid": 1}):
        assert state.holder(lock) == {"pid": 1}
    timer.join()


def test_an_orchestrator_does_not_wait_for_ever(lock, asked, monkeypatch):
    monkeypatch.setattr(state, "PATIENCE", 0.05)
    with pytest.raises(state.Busy, match=re.escape("pid ?")), state.Lock(lock, {"pid": 1}):
        pass


STARTER = """
import state
from pathlib import Path
folder = Path(sys.argv[1])
for _ in range(300):
    try:
        with state.Lock(folder / "lock", {}):
            (folder / "held").mkdir()
            (folder / "held").rmdir()
            print("held")
    except state.Busy:
        pass
"""


def test_of_many_orchestrators_never_two_work_at_once(tmp_path):
    argv = [sys.executable, "-IB", "-c", f"import sys\nsys.path.insert(0, {str(KIT)!r})\n{STARTER}", str(tmp_path)]
    starters = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate(timeout=60) for process in starters]
    assert [error for _, error in said] == [""] * 4  # mkdir fails where two hold the lock
    assert sum(out.count("held") for out, _ in said) > 0


def test_above_the_size_saved_answers_go_first_and_then_the_oldest_history(path):
    history = [{"iteration": n, "kind": "x" * 500} for n in range(150)]
    state.save(path, document(answers={"q": {"text": "y" * 40_000}}, history=history))
    found = state.load(path)
    assert found["answers"] == {} and len(found["history"]) == 150
    state.save(path, document(answers={"q": {"text": "y"}}, history=history * 2))
    assert state.load(path, validate=False)["history"][-1]["iteration"] == 149
    assert path.stat().st_size <= state.MAX_SIZE
