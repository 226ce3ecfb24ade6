"""The store: refusals, races between processes, and what a transaction promises."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from threading import Barrier

import pytest

from service.errors import StaleStreams, StoreError
from service.store import Changes, IdempotencyKey, NewStream, Store, StoredReply, StreamRecord


def created(store: Store, name: str = "a", steps: int = 3) -> StreamRecord:
    """A stream with a few steps."""
    record = StreamRecord(0, name, 0, steps - 1, 1, steps, 0)
    return store.commit(Changes(created=[NewStream(record, None, [(s, float(s)) for s in range(steps)])]))[0]


def advanced(record: StreamRecord, y: float = 9.0) -> Changes:
    """One more step."""
    after = record._replace(
        last_step=record.last_step + 1, version=record.version + 1, observations=record.observations + 1
    )
    return Changes(inserted=[(record.id, after.last_step, y)], streams=[(after, record.version)])


def left_in_cycles(work: Callable[[], object]) -> int:
    """Objects that 20 calls leave for the garbage collector, at least: other threads of this process may leave some."""
    least = sys.maxsize
    gc.collect()
    gc.freeze()  # what all other tests have left alive is not looked through each time
    gc.disable()
    try:
        for _ in range(5):
            gc.collect()
            for _ in range(20):
                work()
            least = min(least, gc.collect())
    finally:
        gc.enable()
    return least


@pytest.fixture
def store(store_url):
    opened = Store.open(store_url)
    yield opened
    opened.close()


def test_a_store_of_another_frequency_is_refused(store):
    store.claim_calendar("h", None)
    store.claim_calendar("h", None)

    with pytest.raises(StoreError, match="holds streams of freq 'h', but the model has freq 'D'"):
        store.claim_calendar("D", None)


def test_names_of_covariates_stay_whoever_adds_them_at_once(store, store_url):
    assert store.add_covariates(()) == frozenset()
    others = [Store.open(store_url) for _ in range(4)]
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda other: [other.add_covariates({f"n{i}", "x" * 300}) for i in range(20)], others))
    finally:
        for other in others:
            other.close()

    assert store.add_covariates({"price", "n3"}) == {*(f"n{i}" for i in range(20)), "x" * 300, "price"}


def test_all_who_first_probe_a_store_at_once_may_write(any_store_url):
    stores = [Store.open(any_store_url) for _ in range(4)]
    together = Barrier(len(stores), timeout=30)

    def probe_first(store):
        for _ in range(20):
            with store._engine.begin() as connection:
                connection.exec_driver_sql("DELETE FROM facts WHERE name = 'probe'")
            together.wait()
            store.probe()
            together.wait()

    try:
        with ThreadPoolExecutor(len(stores)) as threads:
            for future in [threads.submit(probe_first, store) for store in stores]:
                future.result()
    finally:
        for store in stores:
            store.close()


@pytest.mark.parametrize(
    "url", ["nonsense", "mysql://x/y", "sqlite://", "sqlite:////no/such/folder/x.db", "oracle+no://x"]
)
def test_an_unusable_store_is_refused_in_one_line(url):
    with pytest.raises(StoreError) as caught:
        Store.open(url)

    assert "\n" not in str(caught.value)


def test_a_commit_that_expected_another_version_changes_nothing(store):
    record = created(store)
    store.commit(advanced(record))
    late = advanced(record, y=1.0)
    late.created.append(NewStream(StreamRecord(0, "b", 0, 0, 1, 1, 0), None, [(0, 1.0)]))

    with pytest.raises(StaleStreams):
        store.commit(late)

    assert store.log(record.id) == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 9.0)]
    assert [found.unique_id for found in store.page("", 10)] == ["a"]


def test_two_that_answer_one_request_do_not_both_win(store):
    """Each has judged it before the other's reply was there; what the loser would have changed is undone, too."""
    first, other = created(store), created(store, "b")
    key = IdempotencyKey("key", b"digest")

    def commit(changes: Changes, body: bytes, at: int, since: int) -> None:
        replies: Future[list[StoredReply]] = Future()
        replies.set_result([StoredReply("a", key, 2, body, at)])
        store.commit(changes, replies, since)

    commit(advanced(first), b"one", 100, 50)
    with pytest.raises(StaleStreams):
        commit(advanced(other), b"two", 110, 60)
    assert store.log(other.id) == [(step, float(step)) for step in range(3)]
    assert store.replies([("a", "key")], 60)["a", "key"].body == b"one"

    commit(advanced(other), b"three", 200, 150)  # the first has run out
    assert store.replies([("a", "key")], 150)["a", "key"].body == b"three"


def test_two_creators_of_one_stream_do_not_both_win(store):
    created(store)

    with pytest.raises(StaleStreams):
        created(store)


def test_a_rewind_voids_the_snapshots_it_makes_wrong_of_every_model(store):
    record = created(store, steps=10)
    for key in ("one", "two"):
        store.save_snapshots(key, {record: b"at 9"})
    after = record._replace(version=2)
    store.commit(Changes(updated=[(record.id, 9, 5.0)], streams=[(after, 1)], rewound=[(record.id, 9)]))

    assert store.recover_before(record, "one", 100).snapshot is None
    assert store.recover_before(record, "two", 100).snapshot is None


def test_a_snapshot_is_stored_if_its_log_has_only_grown_since(store):
    record = created(store, steps=10)
    changes = advanced(record)
    store.commit(changes)

    assert store.save_snapshots("key", {record: b"at 9"}) == 1
    recovery = store.recover(["a"], "key")["a"]
    assert (recovery.snapshot, recovery.snapshot_step, recovery.tail) == (b"at 9", 9, [(10, 9.0)])


@pytest.mark.parametrize("then", ["nothing", "growth"])
def test_a_snapshot_is_not_stored_if_its_log_has_changed_since_but_one_from_after_that_is(store, then):
    """Also if the change lies behind the snapshot's last step: nobody looks."""
    record = created(store, steps=10)
    after = record._replace(version=2)
    store.commit(Changes(updated=[(record.id, 5, 5.5)], streams=[(after, 1)], rewound=[(record.id, 5)]))
    if then == "growth":
        store.commit(advanced(after))

    assert store.save_snapshots("key", {record: b"wrong"}) == 0
    assert store.save_snapshots("key", {after: b"right"}) == 1


def test_a_snapshot_of_what_was_replaced_deleted_or_is_to_come_is_not_stored(store):
    first, second = created(store, "a"), created(store, "b")
    anew = first._replace(version=2)
    store.commit(Changes(created=[NewStream(anew, first, [(s, 7.0) for s in range(3)])], deleted=[second]))

    assert store.save_snapshots("key", {first: b"replaced", second: b"deleted"}) == 0
    assert store.save_snapshots("key", {first._replace(version=3): b"to come"}) == 0
    assert store.save_snapshots("key", {anew: b"anew"}) == 1


def test_a_snapshot_from_before_what_a_trimmed_log_retains_is_not_stored(store):
    record, key = created(store, steps=10), "key"
    changes = advanced(record)
    store.commit(changes)
    grown = changes.streams[0][0]
    store.save_snapshots(key, {grown: b"at 10"})
    assert store.raise_floors(key, 0, [record.id]) == {record.id: 11}

    assert store.save_snapshots("other", {record: b"at 9, and step 10 may be gone"}) == 0
    assert store.save_snapshots("other", {grown: b"at 10"}) == 1


def test_two_snapshots_of_a_stream_are_kept_and_the_nearest_earlier_one_is_found(store):
    record = created(store)
    for _ in range(4):
        store.save_snapshots("key", {record: f"at {record.last_step}".encode()})
        changes = advanced(record)
        store.commit(changes)
        record = changes.streams[0][0]

    assert store.recover_before(record, "key", 100).snapshot == b"at 5"
    assert store.recover_before(record, "key", 5).snapshot == b"at 4"
    assert store.recover_before(record, "key", 4).snapshot is None


@pytest.mark.parametrize(("bases", "kept"), [(0, [14, 13]), (1, [14, 13, 11])])
def test_the_two_newest_snapshots_are_kept_also_when_an_older_one_comes_later(store, bases, kept):
    """Of another process, which has seen less of the log."""
    records = [created(store, steps=12)]
    for _ in range(3):
        changes = advanced(records[-1])
        store.commit(changes)
        records.append(changes.streams[0][0])
    for late in (0, 1, 3, 2):
        store.save_snapshots("key", {records[late]: b"state"}, bases=bases)

    found = [store.recover_before(records[-1], "key", 100, skip).snapshot_step for skip in range(4)]
    assert [step for step in found if step is not None] == kept


def test_a_transaction_in_two_parts_is_durable_at_its_end_only(store):
    record = created(store)
    transaction = store.begin(advanced(record))
    assert transaction is not None
    assert store.log(record.id)[-1] == (2, 2.0)

    with ThreadPoolExecutor(1) as another:  # as the engine does, which has it ended by the writer's thread
        another.submit(transaction.end).result()
    assert store.log(record.id)[-1] == (3, 9.0)
    with pytest.raises(StaleStreams):
        store.begin(advanced(record))


def test_an_undone_transaction_writes_nothing_says_why_and_leaves_the_way_free(store):
    record = created(store)
    transaction = store.begin(advanced(record))
    assert transaction is not None

    with pytest.raises(ArithmeticError, match="the fold failed"):
        transaction.undo(ArithmeticError("the fold failed"))
    assert store.log(record.id)[-1] == (2, 2.0)
    store.commit(advanced(record))
    assert store.log(record.id)[-1] == (3, 9.0)


def test_a_transaction_is_not_begun_beside_another(store):
    first, second = created(store), created(store, "b")
    transaction = store.begin(advanced(first))
    assert transaction is not None
    assert store.begin(advanced(second)) is None
    transaction.end()
    beside = store.begin(advanced(second))
    assert beside is not None
    beside.end()
    assert store.log(first.id)[-1] == store.log(second.id)[-1] == (3, 9.0)


def test_a_server_has_its_transactions_begun_by_another_thread(any_store_url):
    """Its statements are trips there and back, which the fold need not wait for."""
    store = Store.open(any_store_url)
    record = created(store)
    transaction = store.begin(advanced(record))
    assert (transaction is None) == any_store_url.startswith("postgresql")
    if transaction is not None:
        transaction.end()
    store.close()


def test_a_transaction_waits_for_its_leave_and_is_undone_without(store):
    record = created(store)
    go, no = Future(), Future()
    no.set_exception(ArithmeticError("the fold failed"))

    with pytest.raises(ArithmeticError, match="fold"):
        store.commit(advanced(record), no)
    assert store.log(record.id)[-1] == (2, 2.0)

    with ThreadPoolExecutor(1) as writer:
        committed = writer.submit(store.commit, advanced(record), go)
        seen_before = store.log(record.id)
        go.set_result(None)
        committed.result()
    assert seen_before[-1] == (2, 2.0)
    assert store.log(record.id)[-1][0] == 3


def test_a_deleted_stream_leaves_nothing_and_its_id_is_not_reused(store):
    record = created(store)
    store.save_snapshots("key", {record: b"state"})
    store.commit(Changes(deleted=[record]))

    assert store.log(record.id) == []
    assert store.recover(["a"], "key") == {}
    assert created(store).id > record.id


def test_recovery_gives_the_snapshot_and_only_the_log_after_it(store):
    record = created(store)
    store.save_snapshots("key", {record: b"state"})
    store.commit(advanced(record))

    recovery = store.recover(["a", "none"], "key")["a"]
    other = store.recover(["a"], "other")["a"]

    assert (recovery.snapshot, recovery.snapshot_step, recovery.tail) == (b"state", 2, [(3, 9.0)])
    assert (other.snapshot, len(other.tail)) == (None, 4)


@pytest.mark.parametrize("count", [1, 2, 3, 511, 512, 513, 1500])
def test_blocks_of_any_number_of_rows_are_all_written(store, count):
    records = store.commit(
        Changes(created=[NewStream(StreamRecord(0, f"s{i}", 0, 0, 1, 1, 0), None, [(0, 0.1)]) for i in range(count)])
    )
    changes = Changes()
    for record in records:
        one = advanced(record, y=0.1 + record.id)
        changes.inserted.extend(one.inserted)
        changes.streams.extend(one.streams)
    store.commit(changes)

    assert all(store.log(record.id)[-1] == (1, 0.1 + record.id) for record in records[:: max(count // 7, 1)])
    assert set(store.versions([record.id for record in records]).values()) == {(2, None)}


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda store, record: store.recover([record.unique_id], "model"), id="recover"),
        pytest.param(lambda store, record: store.recover_before(record, "model", 2), id="recover_before"),
        pytest.param(lambda store, record: store.log(record.id, 0), id="log"),
        pytest.param(lambda store, record: store.known({record.id: [1, 2]}), id="known"),
        pytest.param(lambda store, record: store.known({record.id: [1, 10**6]}), id="known_far_apart"),
        pytest.param(lambda store, record: store.versions([record.id]), id="versions"),
        pytest.param(lambda store, record: store.has_only_grown(record), id="has_only_grown"),
    ],
)
def test_what_requests_read_leaves_nothing_for_the_garbage_collector(store, read):
    record = created(store)
    store.save_snapshots("model", {record: b"state"})
    assert read(store, record)
    assert left_in_cycles(lambda: read(store, record)) < 20


def test_what_requests_write_leaves_nothing_for_the_garbage_collector(store):
    record, numbers = created(store), count()

    def write() -> None:
        nonlocal record
        y = float(next(numbers))
        created(store, f"other {y}")
        store.commit(advanced(record))
        record = advanced(record).streams[0][0]
        changed = record._replace(version=record.version + 1)
        updated = [(record.id, 1, y)]
        store.commit(Changes(updated=updated, streams=[(changed, record.version)], rewound=[(record.id, 1)]))
        record = changed

    write()
    assert left_in_cycles(write) < 20
    assert store.log(record.id)[1] == (1, next(numbers) - 1.0)
