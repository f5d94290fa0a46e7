"""Which dialect a provider is asked in, and back: the carriers come here with each attempt.

Nearly always the provider speaks the client's dialect, and then nothing happens. `wire/dialects.py` knows how a dialect is said in
another; here it is applied to a call.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from hortator.call import Call, Deployment
from hortator.errors import InvalidReply, InvalidRequest
from hortator.providers.base import Provider
from hortator.wire import dialects
from hortator.wire.chat_stream import ChatStream


def said(call: Call, provider: Provider, deployment: Deployment) -> Call:
    """Return the call as the provider understands it: itself where it can. Raises InvalidRequest, Inapplicable.

    How some things are said depends on the model, so a translated body has the provider's name for it already.
    """
    if call.operation in provider.dialects:
        return call
    spoken = dialects.spoken(call.operation, provider.dialects)
    body = {**call.body, "model": Raw(msgspec.json.encode(deployment.model))}
    try:
        body = dialects.request(call.operation, spoken, body, extensions=provider.extensions)
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="too_deep") from None
    # A usage chunk is what the translation is made of, whether or not the client wants one.
    return replace(call, operation=spoken, body=body, wants_usage=False)


def reader(call: Call, sent: Call) -> dialects.Reader:
    """Return a reader for the stream that answers `sent`, which was `call`."""
    if call.operation == "chat" and call is sent:
        return ChatStream(call.wants_usage)
    return dialects.reader(call.operation, sent.operation, _asked(call))


def checked(sent: Call, body: bytes) -> dialects.Whole:
    """Check a whole reply to `sent`. Raises InvalidReply."""
    return dialects.FORMS[sent.operation].read_whole(body)


def answered(call: Call, sent: Call, body: bytes) -> bytes:
    """Return a checked reply in the client's dialect. Raises InvalidReply."""
    if call is not sent:
        try:
            return dialects.reply(call.operation, sent.operation, body, _asked(call))
        except RecursionError:
            raise InvalidReply("The provider's reply is nested too deeply.") from None
    mend = dialects.FORMS[call.operation].mend_whole
    return body if mend is None else mend(body, call.body)


def _asked(call: Call) -> dialects.Asked:
    return dialects.Asked(call.body, call.id, call.received_at, call.wants_usage)
