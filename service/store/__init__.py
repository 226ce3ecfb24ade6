"""The observation log, which is the truth, and snapshots of states, in one SQL database.

It knows SQL and step numbers; no calendar, no model, no engine, no HTTP.
"""

from service.store.records import Changes, Filter, NewStream, Recovery, StreamRecord
from service.store.replies import IdempotencyKey, StoredReply
from service.store.store import Store
from service.store.transaction import Transaction
from service.store.values import Value

__all__ = [
    "Changes",
    "Filter",
    "IdempotencyKey",
    "NewStream",
    "Recovery",
    "Store",
    "StoredReply",
    "StreamRecord",
    "Transaction",
    "Value",
]
