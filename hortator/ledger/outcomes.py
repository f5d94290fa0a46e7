"""From what became of a call that complexity routed to one row of `routing_outcomes`, and to marks on earlier rows.

Called by the ledger's writer in its worker thread, with the call's priced record. Rows hold features and sums of weights: of the words
of a request nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal

from hortator.call import Outcome, RequestId, Routed
from hortator.store.outcomes import Mark, OutcomeRow
from hortator.store.tables import MONEY_SCALE
from hortator.store.usage import UsageRow

WORD = "word "
"""Features that name a word of the request begin so."""


def of_routing(pairs: Iterable[tuple[Outcome, UsageRow]]) -> tuple[list[OutcomeRow], list[Mark]]:
    """Return the rows of the calls that complexity routed, and what they and other calls tell of earlier ones."""
    rows: list[OutcomeRow] = []
    marks: list[Mark] = []
    for outcome, record in pairs:
        if outcome.routed is not None:
            rows.append(_row(outcome, outcome.routed, record))
        if outcome.repeat is not None:
            marks.append(Mark(outcome.tenant_id, outcome.repeat.request_id, outcome.repeat.escalated))
    return rows, marks


def _row(outcome: Outcome, routed: Routed, record: UsageRow) -> OutcomeRow:
    features: dict[str, object] = {
        name: round(value, 4) for name, value in routed.features.items() if not name.startswith(WORD)
    }
    features["words"] = [round(value, 3) for value in routed.words]
    return OutcomeRow(
        request_id=RequestId(record.request_id),
        tenant_id=outcome.tenant_id,
        key_hash=outcome.key_hash,
        at=datetime.fromtimestamp(outcome.received_at, UTC),
        path=routed.path,
        score=routed.score,
        confidence=routed.confidence,
        features=features,
        model=record.model_served,
        cost=None if record.cost is None else Decimal(record.cost).scaleb(-MONEY_SCALE),
        retried=routed.retried,
        escalated=False,
        error_code=record.error_code,
    )
