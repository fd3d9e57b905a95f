"""Encrypted values cannot be read without the secret, nor in another place, and are never taken for absent. ``test_stores``
holds the store against the contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from router.core.request.request import Tenant
from router.sessions.stores.contract import EMPTY, Begun, Corrupt, Sid
from router.sessions.stores.encrypted import EncryptedStore
from tests.sessions.stores.contract import OWNER, STRANGER, asks, more
from tests.sessions.stores.memory import MemoryStore

SID, OTHER = Sid("a" * 32), Sid("b" * 32)
TEXT = b"the quick brown fox jumps over the lazy dog"


@pytest.fixture
def store() -> MemoryStore:
    """What an outsider may read and change."""
    return MemoryStore(lambda: 1.0, lambda: 1.0)


@pytest.fixture
def sealed(store: MemoryStore) -> EncryptedStore:
    return EncryptedStore(store, b"a secret of the tests")


async def fill(sealed: EncryptedStore, sid: Sid = SID, owner: Tenant = OWNER) -> None:
    """One of each kind of value, all with the same text."""
    begun = await sealed.begin(asks(sid, owner=owner, entries=(TEXT,), turn=1, record=TEXT, idempotency_key="k"))
    assert isinstance(begun, Begun)
    await sealed.append(more(sid, begun, TEXT, owner=owner, ends=True))
    assert await sealed.commit_view(sid, owner, begun.generation, 0, TEXT)
    assert await sealed.set_attributes(sid, owner, TEXT)
    await sealed.put_document(sid, owner, TEXT, 0)


async def values(store: MemoryStore, sid: Sid = SID, owner: Tenant = OWNER) -> list[bytes]:
    """All that the store keeps."""
    loaded = await store.load(sid, owner, EMPTY)
    turn = await store.read_turn(sid, owner, 1)
    document = await store.get_document(sid, owner)
    assert loaded is not None
    assert loaded.view is not None
    assert turn is not None
    assert document is not None
    return [*loaded.tail, loaded.view, loaded.attributes, turn.record, document]


async def require_corrupt(sealed: EncryptedStore, sid: Sid = SID, owner: Tenant = OWNER) -> None:
    for call in (
        lambda: sealed.load(sid, owner, EMPTY),
        lambda: sealed.begin(asks(sid, owner=owner)),
        lambda: sealed.begin(asks(sid, owner=owner, idempotency_key="k")),
        lambda: sealed.read_turn(sid, owner, 1),
        lambda: sealed.get_document(sid, owner),
    ):
        with pytest.raises(Corrupt):
            await call()


async def test_nothing_of_a_value_can_be_read_in_the_store(sealed: EncryptedStore, store: MemoryStore) -> None:
    await fill(sealed)
    kept = await values(store)
    assert len(kept) == 6
    assert len(set(kept)) == 6, "the same text is never sealed alike"
    for value in kept:
        assert not any(TEXT[at : at + 4] in value for at in range(len(TEXT) - 3))


async def test_with_another_secret_all_of_it_is_corrupt(sealed: EncryptedStore, store: MemoryStore) -> None:
    await fill(sealed)
    await require_corrupt(EncryptedStore(store, b"another secret of the tests"))


def flipped_first(value: bytes) -> bytes:
    return bytes([value[0] ^ 1]) + value[1:]


def flipped_in_nonce(value: bytes) -> bytes:
    return value[:5] + bytes([value[5] ^ 0x80]) + value[6:]


def flipped_last(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


@pytest.mark.parametrize(
    "spoil",
    [flipped_first, flipped_in_nonce, flipped_last, lambda value: value[:-1], lambda value: value[:5], lambda _: TEXT],
    ids=["version", "nonce", "tag", "cut", "cut in the nonce", "not sealed"],
)
async def test_what_was_changed_is_corrupt(
    sealed: EncryptedStore, store: MemoryStore, spoil: Callable[[bytes], bytes]
) -> None:
    await fill(sealed)
    entry, _, view, attributes, record, document = await values(store)
    session = store._sessions[SID]
    session.entries[0] = spoil(entry)
    session.turns[0].record = spoil(record)
    await store.put_document(SID, OWNER, spoil(document), 0)
    await require_corrupt(sealed)
    session.entries[0] = entry
    session.view = spoil(view)
    with pytest.raises(Corrupt):
        await sealed.load(SID, OWNER, EMPTY)
    session.view, session.attributes = view, spoil(attributes)
    with pytest.raises(Corrupt):
        await sealed.load(SID, OWNER, EMPTY)
    session.attributes = attributes
    found = await sealed.load(SID, OWNER, EMPTY)
    assert found is not None
    assert (list(found.tail), found.view, found.attributes) == ([TEXT, TEXT], TEXT, TEXT)


@pytest.mark.parametrize(("sid", "owner"), [(OTHER, OWNER), (OTHER, STRANGER)])
async def test_what_was_moved_to_another_session_is_corrupt(
    sealed: EncryptedStore, store: MemoryStore, sid: Sid, owner: Tenant
) -> None:
    await fill(sealed)
    await fill(sealed, sid, owner)
    here, there = store._sessions[SID], store._sessions[sid]
    there.entries[:], there.turns[0].record = here.entries, here.turns[0].record
    await store.put_document(sid, owner, (await values(store))[-1], 0)
    await require_corrupt(sealed, sid, owner)


async def test_what_was_given_to_another_tenant_is_corrupt(sealed: EncryptedStore, store: MemoryStore) -> None:
    await fill(sealed)
    store._sessions[SID].owner = STRANGER
    store._documents[SID] = (STRANGER, *store._documents[SID][1:])
    await require_corrupt(sealed, SID, STRANGER)


async def test_a_value_of_one_kind_is_none_of_another(sealed: EncryptedStore, store: MemoryStore) -> None:
    await fill(sealed)
    _, _, view, attributes, record, _ = await values(store)
    session = store._sessions[SID]
    session.entries[0], session.turns[0].record = record, view
    await store.put_document(SID, OWNER, attributes, 0)
    await require_corrupt(sealed)
