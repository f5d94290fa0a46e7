"""The responses dialect: what a request must look like, and the same request in chat completions.

The door parses requests here. Where a provider speaks only chat completions, dispatch sends what `to_chat` returns and turns
the answer back with `from_chat` (whole) or `responses_stream.ResponsesFromChat`. What chat cannot express is refused with
`unsupported_parameter`, or named in the answer's `hortator_omitted`. Pure: no I/O, no clock.
Source of the field list: the OpenAI API reference as typed by openai-python 3.52.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from hortator.errors import InvalidReply, InvalidRequest
from hortator.wire import chat
from hortator.wire.body import Object, ParsedRequest, parse_as
from hortator.wire.chat import TokenDetails, WholeReply, WireUsage
from hortator.wire.fields import (
    NULL,
    fields,
    given,
    is_list,
    is_text,
    objects,
    optional_text,
    raw,
    required,
    required_text,
    text,
    unsupported,
    wrong_type,
)
from hortator.wire.responses_reply import from_chat, response_id, unanswered
from hortator.wire.responses_tools import Toolbox, is_offer, put_tools, read_tools

__all__ = [
    "from_chat",
    "parse",
    "parse_chat",
    "parse_count",
    "parse_for_chat",
    "read_usage",
    "read_whole",
    "response_id",
    "to_chat",
    "to_plain_chat",
    "unanswered",
]

TRUE = Raw(b"true")
_ROLES = frozenset(("user", "assistant", "system", "developer"))
_TYPE_TEXT = Raw(b'"text"')


class ResponseStreamOptions(Struct):
    """`include_usage` is not a parameter of this dialect, but some clients send it to the chat door in this dialect's form."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ResponsesRequest(Struct):
    """The types of all documented parameters; decoding into it is the validation. Unknown fields are ignored here and pass."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    input: str | list[Object] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    background: bool | None = None
    context_management: list[Object] | None = None
    conversation: str | Object | None = None
    include: list[str] | None = None
    instructions: str | list[Object] | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str | bool | int | float | None] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    prompt: Object | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Object | None = None
    prompt_cache_retention: str | None = None
    reasoning: Object | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    temperature: float | None = None
    text: Object | None = None
    tool_choice: str | Object | None = None
    tools: list[Object] | None = None
    top_logprobs: int | None = None
    top_p: float | None = None
    truncation: str | None = None
    user: str | None = None


class InputTokensRequest(Struct):
    """What is counted of a request."""

    model: str | None = None
    input: str | list[Object] | None = None
    instructions: str | list[Object] | None = None
    previous_response_id: str | None = None
    tools: list[Object] | None = None
    text: Object | None = None


class ResponseUsage(Struct):
    """`usage` of a response."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens_details: TokenDetails | None = None
    output_tokens_details: TokenDetails | None = None


class WholeResponse(Struct):
    """What the gateway reads of a response that came in one piece."""

    output: list[Raw] | None = None
    status: str | None = None
    model: str | None = None
    usage: ResponseUsage | None = None
    error: Any = None


_request = msgspec.json.Decoder(ResponsesRequest)
_counted = msgspec.json.Decoder(InputTokensRequest)
_whole = msgspec.json.Decoder(WholeResponse)
_strings = msgspec.json.Decoder(list[str])


def parse(body: bytes) -> ParsedRequest:
    """Validate a request body. Raises InvalidRequest with a stable code and the offending field as `param`."""
    top, request = parse_as(body, _request)
    if request.input is None and not (request.previous_response_id or request.prompt):
        raise InvalidRequest("Missing required parameter: 'input'.", code="missing_required_parameter", param="input")
    return ParsedRequest(top, request.model, bool(request.stream), True)


def parse_count(body: bytes) -> Object:
    """Validate the body of a request to count its tokens, which need not name a model. Raises InvalidRequest."""
    return parse_as(body, _counted)[0]


def parse_chat(body: bytes) -> ParsedRequest:
    """Validate a body that came to the chat door: a chat request, or one of this dialect, as Cursor sends. Raises InvalidRequest."""
    try:
        return chat.parse(body)
    except InvalidRequest as error:
        if error.param != "messages" or error.code != "missing_required_parameter":
            raise
        try:
            return parse_for_chat(body)
        except InvalidRequest as other:
            raise (error if other.param == "input" else other) from None


def parse_for_chat(body: bytes) -> ParsedRequest:
    """Return a request that came to the chat door in this dialect's form (`input` and no `messages`) as a chat request.

    Its answer is a chat completion, so custom tools stay custom tools. Raises InvalidRequest.
    """
    top, request = parse_as(body, _request)
    options = request.stream_options
    stream = bool(request.stream)
    translated = to_chat(top, custom_tools=True)
    if given(top, "store") is not None:
        translated["store"] = top["store"]
    return ParsedRequest(translated, request.model, stream, bool(stream and options and options.include_usage))


def read_usage(usage: ResponseUsage) -> WireUsage:
    """Return a response's usage under chat's names."""
    return WireUsage(
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
        prompt_tokens_details=usage.input_tokens_details,
        completion_tokens_details=usage.output_tokens_details,
    )


def read_whole(body: bytes) -> WholeReply:
    """Check that a whole reply is a response; return what the gateway reads of it. Raises InvalidReply.

    A response that failed has its `error`; a cancelled or unfinished one is no answer.
    """
    try:
        if not body.isascii():
            body.decode()
        reply = _whole.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidReply("The provider's reply is not a response.") from None
    if not reply.error and (reply.output is None or reply.status not in ("completed", "incomplete")):
        raise InvalidReply("The provider's reply is not a finished response.")
    usage = None if reply.usage is None else read_usage(reply.usage)
    return WholeReply(choices=[], model=reply.model, usage=usage, error=reply.error)


_REFUSED = {
    "context_management": "the conversation is not compacted for this model; send less of it.",
    "conversation": "conversations are not kept; use previous_response_id, or send the items.",
    "prompt": "prompt templates are not kept; send the instructions and the input.",
}
_HANDLED = frozenset(
    "input instructions text reasoning tools tool_choice max_output_tokens stream_options include top_logprobs "
    "store background previous_response_id truncation max_tool_calls image access_programs client_metadata".split()
)
"""Fields that do not go to chat under their own name. The last ones have no meaning there: `store`, `background` and
`previous_response_id` are the gateway's own work, the rest `responses_reply.omitted` names."""


def to_plain_chat(body: Object) -> Object:
    """As `to_chat`, for providers that refuse fields which are not of the chat dialect: past reasoning stays here."""
    return to_chat(body, reasoning_content=False)


def to_chat(body: Object, *, custom_tools: bool = False, reasoning_content: bool = True) -> Object:
    """Return a request as a chat request. Raises InvalidRequest for what chat cannot express.

    The history behind `previous_response_id` must have been put into `input` by then. `custom_tools`: the provider takes
    chat's `custom` tools; else they become functions. `reasoning_content`: it takes past reasoning in a message's field of that name.
    """
    for key, why in _REFUSED.items():
        if given(body, key) not in (None, Raw(b"[]"), Raw(b"{}")):
            raise unsupported(key, why)
    translated = {key: value for key, value in body.items() if key not in _HANDLED and value != NULL}
    toolbox = read_tools(body, custom_tools)
    translated["messages"] = _messages(body, toolbox, reasoning_content)
    put_tools(body, toolbox, translated)
    _put_text(body, translated)
    reasoning = given(body, "reasoning")
    if reasoning is not None and (effort := given(fields(reasoning, "reasoning"), "effort")) is not None:
        translated["reasoning_effort"] = effort
    limit = given(body, "max_output_tokens")
    if limit is not None:
        translated["max_completion_tokens"] = limit
    _put_logprobs(body, translated)
    options = given(body, "stream_options")
    if options is not None and (wanted := given(fields(options, "stream_options"), "include_usage")) is not None:
        translated["stream_options"] = raw({"include_usage": wanted})
    return translated


def _put_text(body: Object, translated: Object) -> None:
    """Write the answer's format and verbosity into the chat request."""
    text_options = given(body, "text")
    if text_options is None:
        return
    options = fields(text_options, "text")
    verbosity = given(options, "verbosity")
    if verbosity is not None:
        translated["verbosity"] = verbosity
    format = given(options, "format")
    if format is None:
        return
    chosen = fields(format, "text.format")
    kind = required_text(chosen, "type", "text.format")
    if kind == "json_schema" and given(chosen, "json_schema") is None:
        schema = {key: value for key, value in chosen.items() if key != "type" and value != NULL}
        translated["response_format"] = raw({"type": kind, "json_schema": schema})
    elif kind != "text":
        translated["response_format"] = format


def _put_logprobs(body: Object, translated: Object) -> None:
    """Ask chat for log probabilities where the client did, in either of this dialect's ways."""
    top = given(body, "top_logprobs")
    include = given(body, "include")
    if top is not None and top != Raw(b"0"):
        translated["logprobs"], translated["top_logprobs"] = TRUE, top
    elif include is not None and "message.output_text.logprobs" in _strings.decode(include):
        translated["logprobs"] = TRUE


def _messages(body: Object, toolbox: Toolbox, reasoning_content: bool) -> Raw:
    """Return the whole conversation as chat's `messages`."""
    conversation = _Conversation(toolbox, reasoning_content)
    instructions = given(body, "instructions")
    if instructions is not None:
        if is_text(instructions):
            conversation.say("system", instructions)
        else:
            conversation.read(instructions, "instructions")
    asked = given(body, "input")
    if asked is not None:
        if is_text(asked):
            conversation.say("user", asked)
        else:
            conversation.read(asked, "input")
    messages = conversation.finish()
    if not messages:
        raise InvalidRequest("'input' must not be empty.", code="empty_array", param="input")
    return raw(messages)


class _Conversation:
    """Puts items together into messages: chat has one message where this dialect has reasoning, text and calls as items."""

    def __init__(self, toolbox: Toolbox, reasoning_content: bool) -> None:
        self._toolbox = toolbox
        self._reasoning_content = reasoning_content
        self._messages: list[dict[str, Any]] = []
        self._turn: dict[str, Any] | None = None
        """The assistant's message that is being put together: `content` parts, `reasoning`, `refusal`, `tool_calls`."""

    def read(self, items: Raw, param: str) -> None:
        """Take in items. Raises InvalidRequest for those that chat cannot express."""
        for index, item in enumerate(objects(items, param)):
            self._item(item, f"{param}[{index}]")

    def finish(self) -> list[dict[str, Any]]:
        """Return the messages. System messages at the beginning become one: many models' templates take no second."""
        self._end_turn()
        messages = self._messages
        count = next((at for at, one in enumerate(messages) if one["role"] != "system"), len(messages))
        texts = [_texts(one["content"]) for one in messages[:count]]
        if count < 2 or None in texts:
            return messages
        joined = "\n\n".join(text for found in texts for text in found or ())
        return [{"role": "system", "content": raw(joined)}, *messages[count:]]

    def say(self, role: str, content: Raw) -> None:
        """Add a message that is not the assistant's. `developer` is this dialect's word for what all models know as `system`."""
        self._end_turn()
        self._messages.append({"role": "system" if role == "developer" else role, "content": content})

    def _item(self, item: Object, param: str) -> None:
        kind = optional_text(item, "type", param)
        if kind is None:
            kind = "message" if "role" in item else "item_reference"
        if kind == "message":
            self._message(item, param)
        elif kind in ("function_call", "custom_tool_call"):
            calls = self._begin_turn(after_text=True).setdefault("tool_calls", [])
            calls.append(self._toolbox.call(item, param))
        elif kind in ("function_call_output", "custom_tool_call_output"):
            self._output(item, param)
        elif kind == "reasoning":
            self._reasoning(item, param)
        elif is_offer(kind):
            return
        elif kind == "item_reference":
            raise unsupported(param, "items are not kept one by one; send the item, or use previous_response_id.")
        else:
            raise unsupported(
                param, f"a model that is reached by chat completions has no items of type '{kind[:100]}'."
            )

    def _message(self, item: Object, param: str) -> None:
        role = required_text(item, "role", param)
        if role not in _ROLES:
            raise InvalidRequest(
                f"'{param}.role' must be user, assistant, system or developer.",
                code="invalid_value",
                param=f"{param}.role",
            )
        content = required(item, "content", param)
        if role != "assistant":
            self.say(role, content if is_text(content) else _content(content, f"{param}.content"))
            return
        turn = self._begin_turn()
        if is_text(content):
            turn.setdefault("content", []).append({"type": _TYPE_TEXT, "text": content})
            return
        for index, part in enumerate(objects(content, f"{param}.content")):
            where = f"{param}.content[{index}]"
            if required_text(part, "type", where) == "refusal":
                turn["refusal"] = turn.get("refusal", "") + required_text(part, "refusal", where)
            else:
                turn.setdefault("content", []).append(_part(part, where))

    def _output(self, item: Object, param: str) -> None:
        """Add what a tool returned."""
        self._end_turn()
        output = required(item, "output", param)
        if is_list(output):
            output = _content(output, f"{param}.output")
        elif not is_text(output):
            raise wrong_type(f"{param}.output", "a string or an array")
        self._messages.append({"role": "tool", "tool_call_id": required(item, "call_id", param), "content": output})

    def _reasoning(self, item: Object, param: str) -> None:
        """Keep the text of a reasoning item, or else its summary, for the message that it led to.

        One that is only there encrypted has no text; `responses_reply.omitted` says so.
        """
        found = given(item, "content")
        if found is None or not objects(found, f"{param}.content"):
            found = given(item, "summary")
        parts = [] if found is None else objects(found, param)
        texts = [required_text(part, "text", f"{param}[{index}]") for index, part in enumerate(parts)]
        if texts and self._reasoning_content:
            self._begin_turn().setdefault("reasoning", []).extend(texts)

    def _begin_turn(self, *, after_text: bool = False) -> dict[str, Any]:
        """Return the assistant's message to add to. One that has its text is over, unless a call may follow (`after_text`), or
        calls came already: what they return must follow the message that holds them all."""
        turn = self._turn
        if (
            turn is not None
            and not after_text
            and "tool_calls" not in turn
            and ("content" in turn or "refusal" in turn)
        ):
            self._end_turn()
        if self._turn is None:
            self._turn = {}
        return self._turn

    def _end_turn(self) -> None:
        turn, self._turn = self._turn, None
        if not turn:
            return
        content = turn.get("content")
        message: dict[str, Any] = {"role": "assistant", "content": None if content is None else _simplest(content)}
        if "reasoning" in turn:
            message["reasoning_content"] = "\n\n".join(turn["reasoning"])
        for key in ("refusal", "tool_calls"):
            if key in turn:
                message[key] = turn[key]
        self._messages.append(message)


def _texts(content: Raw) -> list[str] | None:
    """Return the texts of a message's content, None when there is more to it than plain texts."""
    if is_text(content):
        return [text(content, "content")]
    parts = objects(content, "content")
    if any(part.keys() != {"type", "text"} or part["type"] != _TYPE_TEXT for part in parts):
        return None
    return [text(part["text"], "content") for part in parts]


def _simplest(parts: list[Object]) -> Raw:
    """Return content as a string where it is one text and nothing else, which every provider takes; else as parts."""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"} and parts[0]["type"] == _TYPE_TEXT:
        return parts[0]["text"]
    return raw(parts)


def _content(value: Raw, param: str) -> Raw:
    """Return a message's or a tool's content parts as chat writes them."""
    return _simplest([_part(part, f"{param}[{index}]") for index, part in enumerate(objects(value, param))])


def _part(part: Object, param: str) -> Object:
    """Return one content part as chat writes it; fields that it has besides its own stay."""
    kind = required_text(part, "type", param)
    if kind in ("input_text", "output_text", "text", "summary_text", "reasoning_text"):
        gone = ("type", "annotations", "logprobs")
        kept = {key: value for key, value in part.items() if key not in gone and value != NULL}
        required(part, "text", param)
        return {"type": _TYPE_TEXT, **kept}
    if kind == "input_image":
        return _image(part, param)
    if kind == "input_file":
        return _file(part, param)
    if kind in ("image_url", "input_audio", "file"):
        return part
    raise unsupported(param, f"a model that is reached by chat completions has no content of type '{kind[:100]}'.")


def _image(part: Object, param: str) -> Object:
    if given(part, "image_url") is None:
        raise unsupported(f"{param}.file_id", "images must be sent as image_url, which may be a data: URL.")
    image = {"url": part["image_url"]}
    if given(part, "detail") is not None:
        image["detail"] = part["detail"]
    gone = ("type", "image_url", "detail", "file_id")
    kept = {key: value for key, value in part.items() if key not in gone and value != NULL}
    return {"type": raw("image_url"), "image_url": raw(image), **kept}


def _file(part: Object, param: str) -> Object:
    if given(part, "file_url") is not None:
        raise unsupported(f"{param}.file_url", "files must be sent as file_data.")
    inside = ("file_data", "file_id", "filename", "detail")
    file = {key: value for key in inside if (value := given(part, key)) is not None}
    kept = {key: value for key, value in part.items() if key not in (*inside, "type", "file_url") and value != NULL}
    return {"type": raw("file"), "file": raw(file), **kept}
