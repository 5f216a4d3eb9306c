"""The store: what went in comes out, damaged entries do not, and one process computes for all."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.checkpoint.atomic import fault_hook
from surgery.errors import StoreError
from surgery.record import JSON
from surgery.store import Store
from tests.support.faults import Kill, Killed, count_steps

KEY = Store.key({"method": "example"})
DATA: dict[str, JSON] = {"loss": 0.1, "names": ["cat", "pizza"], "nothing": None}

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def example() -> dict[str, torch.Tensor]:
    return {"offset": torch.tensor([1.5, -2.25]), "half": torch.ones(2, 3, dtype=torch.float16).T}


def test_what_was_put_is_got_bit_for_bit(tmp_path: Path) -> None:
    Store(tmp_path).put(KEY, example(), DATA)
    found = Store(tmp_path).get(KEY)
    assert found is not None
    assert found.data == DATA
    assert {name: (t.dtype, t.tolist()) for name, t in found.tensors().items()} == {
        "offset": (torch.float32, [1.5, -2.25]),
        "half": (torch.float16, [[1.0, 1.0]] * 3),
    }


def test_an_entry_may_hold_no_tensors(tmp_path: Path) -> None:
    assert Store(tmp_path).put(KEY, {}, DATA).tensors() == {}


def test_a_key_that_was_never_put_gives_nothing(tmp_path: Path) -> None:
    assert Store(tmp_path).get(KEY) is None


def test_a_second_put_replaces_the_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(KEY, example(), DATA)
    store.put(KEY, {"other": torch.zeros(1)}, {"second": True})
    found = store.get(KEY)
    assert found is not None
    assert (list(found.tensors()), found.data) == (["other"], {"second": True})


@given(meaning=st.dictionaries(st.text(), values, max_size=4))
def test_a_key_ignores_the_order_of_keys_and_nothing_else(meaning: dict[str, JSON]) -> None:
    backwards = dict(reversed(meaning.items()))
    assert Store.key(meaning) == Store.key(backwards)
    assert Store.key(meaning) != Store.key({**meaning, "one more": 1})


def test_a_key_is_the_digest_of_canonical_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.store.store.library_versions", lambda: {"torch": "2.6"})
    # printf '{"libraries":{"torch":"2.6"},"meaning":{"a":[1,2.5,null],"b":"ü"}}' | sha256sum
    expected = "205f93f7239d4c3f9fc881e75dd6d0a7b18d85b3f7b2626bb9e8399aac00129d"
    assert Store.key({"b": "ü", "a": [1, 2.5, None]}) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, torch.zeros(1), b"bytes"])
def test_a_key_or_data_that_is_no_json_is_refused(tmp_path: Path, value: JSON) -> None:
    with pytest.raises(StoreError, match="plain JSON"):
        Store.key({"a": value})
    with pytest.raises(StoreError, match="plain JSON"):
        Store(tmp_path).put(KEY, {}, {"a": value})
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("key", ["", "../escape", "A" * 64, KEY + "\n"])
def test_text_that_is_no_key_never_becomes_a_path(tmp_path: Path, key: str) -> None:
    with pytest.raises(StoreError, match="no key of this store"):
        Store(tmp_path).get(key)


def damage_short_tensors(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def damage_one_bit(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def damage_missing_tensors(folder: Path) -> None:
    (folder / "tensors.safetensors").unlink()


def damage_missing_done(folder: Path) -> None:
    (folder / "done.json").unlink()


def damage_short_done(folder: Path) -> None:
    (folder / "done.json").write_bytes((folder / "done.json").read_bytes()[:20])


def damage_other_data(folder: Path) -> None:
    done = json.loads((folder / "done.json").read_bytes())
    done["data"]["loss"] = 0.2
    (folder / "done.json").write_text(json.dumps(done))


def damage_other_shape(folder: Path) -> None:
    (folder / "done.json").write_text("[1, 2]")


@pytest.mark.parametrize(
    "damage",
    [
        damage_short_tensors,
        damage_one_bit,
        damage_missing_tensors,
        damage_missing_done,
        damage_short_done,
        damage_other_data,
        damage_other_shape,
    ],
)
def test_a_damaged_entry_is_named_in_the_log_and_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    store = Store(tmp_path)
    damage(store.put(KEY, example(), DATA).folder)
    with caplog.at_level(logging.WARNING):
        assert store.get(KEY) is None
    assert f"{KEY} is damaged" in caplog.text
    again = store.remember(KEY, lambda: (example(), DATA))
    assert store.get(KEY) == again


def test_a_stored_result_is_not_computed_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.remember(KEY, lambda: (example(), DATA))
    assert store.remember(KEY, lambda: pytest.fail("computed again")).data == DATA


def test_a_writer_killed_at_any_step_leaves_the_old_entry_or_the_new_one(tmp_path: Path) -> None:
    def replaced(store: Store) -> None:
        store.put(KEY, {"new": torch.ones(1)}, {"version": 2})

    def prepared(name: str) -> Store:
        store = Store(tmp_path / name)
        store.put(KEY, {"old": torch.zeros(1)}, {"version": 1})
        return store

    steps = count_steps(lambda: replaced(prepared("counted"))) - count_steps(lambda: prepared("old alone"))
    for at in range(steps):
        store = prepared(str(at))
        with pytest.raises(Killed), fault_hook(Kill(at)):
            replaced(store)
        found = store.get(KEY)
        assert found is not None
        assert (list(found.tensors()), found.data) in ((["old"], {"version": 1}), (["new"], {"version": 2}))
        assert store.remember(KEY, lambda: ({}, {})) == found


SLOW_COMPUTATION = f"""
import sys, time
from pathlib import Path
from surgery.store import Store
def compute():
    print("computed")
    time.sleep(0.5)
    return {{}}, {{}}
Store(Path(sys.argv[1])).remember({KEY!r}, compute)
"""

DEATH_UNDER_LOCK = f"""
import os, sys
from pathlib import Path
from surgery.store import Store
with Store(Path(sys.argv[1])).locked({KEY!r}):
    os._exit(9)
"""


def started(code: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True)


def test_of_two_processes_one_computes_and_the_other_waits(tmp_path: Path) -> None:
    workers = [started(SLOW_COMPUTATION, tmp_path) for _ in range(2)]
    outputs = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sorted(outputs) == ["", "computed\n"]


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    worker = started(DEATH_UNDER_LOCK, tmp_path)
    worker.communicate()
    assert worker.returncode == 9
    with Store(tmp_path).locked(KEY):
        assert Store(tmp_path).get(KEY) is None


def test_a_key_changes_with_a_library_that_is_upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = [{"torch": "2.6"}, {"torch": "2.7"}]
    keys = []
    for found in versions:
        monkeypatch.setattr("surgery.store.store.library_versions", lambda found=found: found)
        keys.append(Store.key({"method": "example"}))
    assert keys[0] != keys[1]
