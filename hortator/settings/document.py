"""The configuration document, field by field: what each setting means, its unit, its default and why it is that.

`load` makes one `Settings` at start-up from the file, the environment and the defaults; everyone reads it, nobody changes it.
Under each field stands its documentation; `docs/configuration.md` is made from it. Nothing here reads files or variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from hortator.settings.secret import Secret

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Bytes = Annotated[int, Meta(ge=1024, le=1 << 40)]
Milliseconds = Annotated[int, Meta(ge=1, le=86_400_000)]
Seconds = Annotated[float, Meta(ge=0, le=31_536_000)]
Days = Annotated[int, Meta(ge=1, le=36_500)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Strategy = Literal["ordered", "least-in-flight", "weighted", "lowest-latency", "cheapest"]
Tier = Literal["primary", "edge", "flagship", "local"]
Feature = Literal["tools", "vision", "json_schema"]


class Server(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The listener for clients."""

    host: Name = "127.0.0.1"
    """Address to listen on. The default is reachable from this machine only; `0.0.0.0` opens it to the network."""
    port: Port = 8000
    """TCP port (R-004-1). 0 = any free one, printed at start."""
    root_path: Annotated[str, Meta(max_length=200)] = ""
    """Path prefix under which everything is served, e.g. `/hortator` (R-000-53). Empty = none."""
    max_body_bytes: Bytes = 20_000_000
    """Largest request body, bytes; more is refused with 413 before it is read. Room for a few images in a chat."""
    max_header_bytes: Bytes = 65_536
    """Largest request head, bytes; more is refused with 431."""
    max_headers: Count = 200
    """Most header fields in a request; more is refused with 431."""
    max_connections: Count = 4096
    """Most open client connections; more are turned away, so that memory stays bounded. Needs as many file descriptors."""
    drain_seconds: Seconds = 30.0
    """Seconds that running requests get to finish after SIGTERM. Then they are cut off with an honest error."""


class Admin(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The listener for operators: metrics and usage, never on the public one (R-003-8)."""

    enabled: bool = True
    """False = no such listener."""
    host: Name = "127.0.0.1"
    """Address to listen on. On any that is not this machine's own, a key with the permission `admin` is required."""
    port: Port = 9090
    """TCP port. 0 = any free one, printed at start. One that is in use does not stop the server: it warns and does without."""
    require_key: bool = False
    """True = a key is required on a loopback address too."""
    max_connections: Count = 64
    """Most open connections; more are turned away."""
    expose_on_public: bool = False
    """True = the public listener serves `/metrics` and `/metrics/...` too, to keys with the permission `admin` only."""


class Store(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where tenants, keys and usage are kept."""

    url: Secret | None = None
    """`postgresql://user:password@host/name` or `sqlite:////path/file.db`. None = SQLite in the home folder, for one replica.
    Never printed, as it may hold a password."""


class Identity(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The cache of keys in front of the store."""

    refresh_seconds: Annotated[float, Meta(ge=0.1, le=60)] = 2.0
    """Age in seconds at which a cached key is looked up again. A revoked key works 3 s longer than that at most, on every replica."""
    stale_seconds: Seconds = 86_400.0
    """Seconds that known keys keep working while the store is down. A day, so that a night's outage stops nobody."""


class Redis(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where several replicas count limits together."""

    url: Secret | None = None
    """`redis://:password@host:6379/0`; Redis 7 or newer, or Valkey. None = limits are counted in memory, for one replica. Also
    `rediss://` with `?ssl_ca_certs=`, `ssl_certfile=`, `ssl_keyfile=`, `ssl_cert_reqs=none`, and `unix:///path?db=0`. Never printed, as
    it may hold a password."""
    deadline_ms: Annotated[int, Meta(ge=1, le=10_000)] = 50
    """Milliseconds that an answer may take. A slower Redis counts as gone: no request waits longer for it."""


class FailOpen(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whether a limit is passed over (true) or its calls are refused with 503 (false) while Redis does not answer."""

    requests: bool = True
    """Requests in a window: they protect from haste, and a short outage should stop nobody."""
    concurrent: bool = True
    """Requests at any one time."""
    tokens: bool = False
    """Tokens in a window: what is spent cannot be taken back."""
    money: bool = False
    """US dollars in a window."""


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the limits of tenants and keys are counted. The limits themselves: `hortator tenants`, `hortator keys`."""

    default_max_output_tokens: Count = 512
    """Tokens reserved for the answer to a request that names no maximum. What the answer really takes is counted after it; a request
    that must never exceed its budget names `max_tokens`."""
    fail_open: FailOpen = field(default_factory=FailOpen)
    """Kinds of limits that are passed over while Redis does not answer."""


class Admission(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many calls run at once in this process, and who waits when there are more: `high` priority first, then `standard`, then `low`."""

    max_concurrent: Count = 2000
    """Most calls that are answered at once, streams until their end. 2,000 streams of 20 chunks a second keep one core busy. `low` takes
    none of the last tenth of the places by itself, `standard` none of the last twentieth."""
    max_queue: Count = 256
    """Most calls that wait for a place. When it is full, a call turns away one of a lower class, or gets 503 `overloaded`."""
    max_wait_ms: Milliseconds = 2000
    """Milliseconds that a call may wait. Then it gets 503 `overloaded` with `Retry-After`."""


class Ledger(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Usage records on their way to the store."""

    journal_max_bytes: Bytes = 268_435_456
    """Most bytes of records kept in the journal file while the store is down (256 MiB, about half a million calls)."""
    flush_ms: Milliseconds = 100
    """Milliseconds between writes, and so what a kill -9 can lose. Longer makes larger, cheaper batches."""
    price_overrides: Path | None = None
    """YAML file with own prices, taken before the built-in list. None = built-in prices only. Relative to this file."""
    retention_days: Days | None = 400
    """Days that usage records are kept of tenants without a data retention of their own; then they are deleted. None = for ever.
    Thirteen months, so that a month can be compared with the same one of the year before."""
    rollup_retention_days: Days | None = 3653
    """Days that the sums by hour are kept, or as long as the records if that is longer; reports and exports read these. None = for ever. Ten
    years, as invoices rest on them."""
    audit_retention_days: Days | None = 3653
    """Days that the audit log is kept. None = for ever."""


class S3(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A bucket for the contents of files, on S3 or anything that speaks its protocol. Needs the extra `hortator[s3]`."""

    bucket: Name | None = None
    """Name of the bucket. None = contents are kept in the folder `files` of the home folder, for one replica."""
    prefix: Annotated[str, Meta(max_length=200)] = ""
    """Put before the name of every object, e.g. `hortator/`."""
    endpoint: str | None = None
    """Address of a service that is not AWS, e.g. `http://minio:9000`. None = AWS."""
    region: Name | None = None
    """Region of the bucket. None = AWS_REGION, else us-east-1."""
    access_key_id: Secret | None = None
    """None = AWS_ACCESS_KEY_ID, else the role of the machine. Never printed."""
    secret_access_key: Secret | None = None
    """Secret of that key. None = AWS_SECRET_ACCESS_KEY. Never printed."""


class Files(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What clients send to `/v1/files`, and the results of batches."""

    max_bytes: Bytes = 536_870_912
    """Largest file, bytes; more is refused with 413. 512 MiB, as OpenAI's. Files go to their storage piece by piece."""
    tenant_bytes: Annotated[int, Meta(ge=0, le=1 << 50)] = 10_737_418_240
    """Most bytes that the files of one tenant may take together (10 GiB); more is refused with 413. Results of batches count, but are
    always written."""
    s3: S3 = field(default_factory=S3)
    """A bucket for the contents of files."""


class Batches(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The work of `/v1/batches`."""

    running: Annotated[int, Meta(ge=0, le=1000)] = 8
    """Batches that one process works on at once; others wait in the store. Half of them, at least one, may be one tenant's. 0 = this
    process works on none."""
    lines: Annotated[int, Meta(ge=1, le=10_000)] = 8
    """Lines of one batch that are answered at once."""
    process_lines: Annotated[int, Meta(ge=1, le=10_000)] = 32
    """Lines of all batches that one process has answered at once."""
    tenant_unfinished: Count = 100
    """Most batches of a tenant that are not finished; more are refused with 429."""
    lease_seconds: Annotated[float, Meta(ge=1, le=600)] = 15.0
    """Seconds after which another process takes over a batch whose own one has died."""


class Streaming(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Streamed replies."""

    status_wait_ms: Annotated[int, Meta(ge=0, le=600_000)] = 2000
    """Milliseconds that the status line of a directly named model waits for the upstream's verdict. An error within it keeps
    its true status; a later one arrives inside the stream."""
    routed_status_wait_ms: Annotated[int, Meta(ge=0, le=600_000)] = 200
    """The same for routed and orchestrated models, which must start to stream within 200 ms (R-000-43)."""
    keep_alive_ms: Milliseconds = 5000
    """Milliseconds of silence after which a comment line is sent, so that proxies keep the connection open."""


class Timeouts(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long an upstream may take. Each has its own error code."""

    connect_ms: Milliseconds = 5000
    """Milliseconds to connect, TLS included. Another deployment is tried after it."""
    first_byte_ms: Milliseconds = 120_000
    """Milliseconds from the request sent to the reply's first byte. Long, as reasoning models think before they speak."""
    idle_ms: Milliseconds = 60_000
    """Milliseconds of silence within a reply."""
    total_ms: Milliseconds = 600_000
    """Milliseconds for the whole request, all attempts together. Ten minutes, what the official client libraries wait."""


class Upstream(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Connections to providers."""

    per_host_connections: Count = 1024
    """Most open connections to one provider; further calls wait for a free one."""
    idle_seconds: Seconds = 4.0
    """Seconds that an unused connection is kept. Below the 5 s after which common servers close theirs."""
    max_age_seconds: Seconds = 600.0
    """Seconds after which a connection is not used again, so that changes of name and balance are noticed."""
    ca_file: Path | None = None
    """PEM file with the authorities to trust. None = the system's. Relative to this file."""
    proxy_url: Secret | None = None
    """`http://user:password@host:port` of an outbound proxy. None = none; HTTP_PROXY and its kin are not read. Never printed.
    Needs the extra `hortator[proxy]`."""


class Provider(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One provider of models. Its models are called `id/model`."""

    id: Name
    """First part of its model ids: small letters, digits, `.`, `_` and `-`. Unique; `local` is the embedded model's."""
    kind: Literal["openai", "anthropic"] = "openai"
    """The dialect it speaks under `base_url`: `openai` = chat completions and their kin, `anthropic` = messages. Clients of either
    get either: requests and replies are translated where they differ. The preset `anthropic` has its own kind."""
    preset: Literal["openai", "anthropic", "groq", "workers-ai", "ollama", "vllm", "cloudflare-gateway"] | None = None
    """Fills `base_url`, and `api_key` from the variable usual for it. None = write them out."""
    base_url: str = ""
    """Address that `/chat/completions` (or `/messages`) and `/models` are appended to, mostly ending in `/v1`. Empty = the preset's."""
    account: Name | None = None
    """Cloudflare account id, for the presets `workers-ai` and `cloudflare-gateway`. None = CLOUDFLARE_ACCOUNT_ID."""
    gateway: Name | None = None
    """Name of the Cloudflare AI Gateway, for the preset `cloudflare-gateway`. None = not used."""
    api_key: Secret | None = None
    """Sent as `Authorization: Bearer`, or as `x-api-key` by the kind `anthropic`. None = the preset's variable, or no such header where the preset has none."""
    headers: Mapping[str, Secret] = field(default_factory=dict)
    """Further headers for every request, e.g. `cf-aig-authorization`. Never printed."""
    models: tuple[Name, ...] | None = None
    """The models that clients may ask for. None = any: the provider's own list is shown, and every name is passed on.
    `[]` = none directly, only through `models` below."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    """As `timeouts` above, for this provider; what is left out keeps the general value."""
    extensions: bool = False
    """True = translated chat requests may hold fields that the chat dialect does not have (`cache_control`, `thinking_blocks`,
    `reasoning_content`, `is_error`), as some servers understand them. OpenAI, Groq and others refuse requests with unknown
    fields, so they are left out by default."""
    responses: bool | None = None
    """Whether it serves `/responses` itself. False = such requests are sent to it as chat completions and the answers turned back.
    None = true for the preset `openai`, else false."""
    detect: bool = False
    """True = served once it has answered, and no fault when it never does."""
    tier: Tier | None = None
    """Tier of its models; `local` = requests that must stay local may go there, and they are free where `price_overrides` say
    nothing. None = as the built-in list says, else by the preset (`groq` primary, `workers-ai` edge, `openai` flagship), else
    `local` at a loopback address, else unknown. A proxy on this machine that asks others needs it."""


class Responses(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is kept of `/v1/responses`, for `previous_response_id`, for reading them again and for those in the background."""

    store: bool = True
    """Keep responses whose request does not say `store: false`. False = keep none: such requests are answered and forgotten,
    `previous_response_id` and `background` are refused."""
    retention_days: Annotated[int, Meta(ge=1, le=3650)] = 30
    """Days after which a kept response is deleted."""
    background_slots: Annotated[int, Meta(ge=1, le=10_000)] = 16
    """Background responses that one process works on at once; others wait in the store."""
    background_max: Count = 1000
    """Most background responses of a tenant that are not finished; more are refused with 429."""


class Retry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is done about a failure before an answer began."""

    max_retries: Annotated[int, Meta(ge=0, le=20)] = 3
    """Most attempts of one request after its first, over all deployments and fallback models (R-001-9). 0 = none, anywhere."""
    delay_ms: Milliseconds = 100
    """Milliseconds before a deployment that failed is asked again; doubles each time, give or take a quarter. Others are asked
    at once."""
    max_wait_ms: Annotated[int, Meta(ge=0, le=600_000)] = 5000
    """Longest Retry-After that is waited for, milliseconds. After a longer one the deployment is not asked again."""
    ratio: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Share of the requests of the last ten seconds that may be sent to the same deployment again, so that an outage is not
    multiplied. Other deployments may always be asked."""
    floor: Annotated[int, Meta(ge=0, le=1_000_000)] = 10
    """Second tries that are always allowed in ten seconds. With `ratio` 0 too, no deployment is asked twice."""


class Breaker(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a deployment is left alone, as long as another can answer."""

    failures: Annotated[int, Meta(ge=0, le=1_000_000)] = 5
    """Consecutive failures after which it is (R-001-8): no connection, time-out, broken reply, 5xx, 401, 402, 408. 0 = never."""
    open_ms: Milliseconds = 60_000
    """Milliseconds until one request may probe it."""
    max_pause_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 60_000
    """Most milliseconds that it is left alone because of its Retry-After. 0 = not at all."""
    look: bool = True
    """True = while a provider does not answer when its models are listed (looked at twice a minute, every 2 s while it cannot be connected to, and
    after a failed request), its deployments are asked after the others; once it answers again, a breaker lets its probe through at once."""


class DeploymentChoice(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One place where a named model can be had."""

    provider: Name
    """Id of a provider, or `local`."""
    model: Name
    """The provider's own name for the model."""
    weight: Annotated[int, Meta(ge=0, le=1_000_000)] = 1
    """Its share under the strategy `weighted`. 0 = only when the others fail."""


class NamedModel(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model of your own naming, had in several places."""

    id: Name
    """What clients ask for. Looked up before `provider/model` is split, so it may contain `/`. Unique."""
    deployments: Annotated[tuple[DeploymentChoice, ...], Meta(min_length=1)]
    """Where to get it: another is tried when one fails before its answer began."""
    strategy: Strategy = "least-in-flight"
    """Which of them is asked first. `ordered`: the first in the list. `least-in-flight`: the one with the fewest requests.
    `weighted`: each by its `weight`. `lowest-latency`: the quicker of two taken at random, by a moving average. `cheapest`: by
    the price list. In the middle three a session (`x-hortator-session`, `prompt_cache_key`) keeps its deployment."""
    fallbacks: tuple[Name, ...] = ()
    """Ids of other models, asked in this order when no deployment answers. The key must be allowed to use them; their own
    fallbacks do not count."""
    context_fallbacks: tuple[Name, ...] = ()
    """The same for requests that are too long for this model. Empty = the client gets the provider's 400."""
    content_fallbacks: tuple[Name, ...] = ()
    """The same for requests that the provider's content filter refuses. Empty = the client gets the provider's error."""
    hedge_ms: Annotated[int, Meta(ge=0, le=600_000)] = 0
    """Milliseconds without a first content (of a whole reply: without the reply) after which another deployment is asked too; the first
    to answer wins, the other is cancelled, and its provider may charge for both. Counts against `retry.ratio`. 0 = never."""
    description: Annotated[str, Meta(max_length=500)] | None = None
    """One line for the model list. None = none."""


class Card(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What routing knows about a model. None = what the built-in list says, else unknown; what is unknown excludes nothing."""

    tier: Tier | None = None
    """Where it belongs. `local` = requests that must stay local may go there."""
    quality: Annotated[float, Meta(ge=0, le=10)] | None = None
    """How good its answers are, 0 to 10: 2 = a toy, 5 = small models of some 8 billion parameters, 7 = good at everyday work, 9 = the best."""
    speed: Annotated[float, Meta(ge=0.1, le=1_000_000)] | None = None
    """Tokens a second that it writes."""
    first_token_ms: Milliseconds | None = None
    """Usual milliseconds to its first token. None = usual for its tier."""
    context_window: Count | None = None
    """Tokens of question and answer together. A longer request does not go there."""
    max_output: Count | None = None
    """Most tokens of an answer."""
    capabilities: tuple[Name, ...] | None = None
    """Words for the model list, such as `chat`, `code`, `reasoning`, `function-calling`. They exclude nothing."""
    lacks: tuple[Feature, ...] | None = None
    """What it is known not to take: `tools`, `vision`, `json_schema`. Requests that need it do not go there. `[]` = nothing."""
    description: Annotated[str, Meta(max_length=500)] | None = None
    """One line for the model list."""


class Local(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The embedded model, `local/<name>`: a child process on this machine. Needs the extra `hortator[local]`."""

    enabled: bool = True
    """False = no embedded model. Without the extra or the file the server starts anyway and says so."""
    model: Name = "qwen2.5-coder-0.5b"
    """Name of a model in the built-in list (`hortator models pull NAME`)."""
    file: Path | None = None
    """Own GGUF file; its name without `.gguf`, in small letters, becomes the model's. None = `model` from the list. Relative to this file."""
    parallel: Annotated[int, Meta(ge=1, le=64)] = 2
    """Requests answered at once; each has its own context, which costs memory."""
    context: Annotated[int, Meta(ge=256, le=1_048_576)] = 4096
    """Tokens of context of each of them, question and answer together."""
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """CPU threads. None = the machine's cores less one, so that the gateway keeps one."""
    queue: Annotated[int, Meta(ge=0, le=10_000)] = 8
    """Requests that may wait; more are refused with 429 and Retry-After."""
    start_timeout_seconds: Annotated[float, Meta(ge=1, le=3600)] = 60.0
    """Seconds for the model to load before the start counts as failed and is tried again."""

    @property
    def name(self) -> str:
        """The model's name behind `local/`."""
        return self.model if self.file is None else self.file.stem.lower()


class TierModels(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The models that agents ask. None = chosen by routing as for `auto`: a good one to plan and to write, a cheap one to work."""

    tribune: Name | None = None
    """Of who plans and writes the answer."""
    centurion: Name | None = None
    """Of who coordinates a group."""
    legionary: Name | None = None
    """Of who does one piece."""


class Webhooks(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is sent to the `callback_url` of tasks (R-000-57 to R-000-59)."""

    timeout_seconds: Annotated[float, Meta(ge=1, le=60)] = 15.0
    """Seconds that a receiver has to answer."""
    allow_hosts: tuple[Name, ...] = ()
    """Hosts (globs, with a port where it is not the scheme's) that may be called though their address is not public, e.g. `127.0.0.1:9000`."""
    give_up_hours: Annotated[float, Meta(ge=0, le=720)] = 28.0
    """Hours after which a delivery that never succeeded is given up; the pauses between tries grow up to ten hours."""


class Orchestration(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Teams of agents behind `hortator/...` models and the task API."""

    enabled: bool = True
    """False = no such models, and 404 on the addresses of tasks."""
    workers: bool = False
    """True = this server leaves trees that no client waits for to processes of `hortator worker`; needs Postgres."""
    max_trees: Annotated[int, Meta(ge=1, le=10_000)] = 64
    """Trees that a process works on at once; a tenth of the places is kept for tenants of priority high (R-000-41)."""
    max_calls: Annotated[int, Meta(ge=1, le=10_000)] = 64
    """Model calls of agents that a process makes at once."""
    tenant_unfinished: Annotated[int, Meta(ge=1, le=1_000_000)] = 1_000
    """Most trees of a tenant that have not ended; more are refused with 429."""
    timeout_seconds: Annotated[int, Meta(ge=1, le=604_800)] = 3_600
    """Seconds that a tree may take where its order does not say."""
    max_cost_usd: Annotated[float, Meta(ge=0, le=1_000_000)] | None = 1.0
    """US dollars that a tree may cost where its order does not say. None = no bound but the caller's limits."""
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 40)] | None = None
    """Tokens that a tree may take where its order does not say. None = no bound but the caller's limits."""
    models: TierModels = field(default_factory=TierModels)
    """Which models agents ask."""
    warm_connections: Annotated[int, Meta(ge=0, le=100)] = 3
    """Idle connections kept open to the providers of these models for ten minutes after each order (R-000-41); 0 = none."""
    roles: Path | None = None
    """Folder of role files of your own (`*.yaml`), over the built-in ones."""
    egress: tuple[Name, ...] = ()
    """Hosts (globs of `host[:port]`) that agents may fetch from with `web_fetch`; empty = none, the tool is not offered. Only an entry
    without wildcards and with a port, such as `wiki.corp:8080`, may have an address that is not public."""
    shell: bool = False
    """True = agents with the capability `shell` may run commands in a sandbox without network (needs bubblewrap)."""
    max_files: Annotated[int, Meta(ge=1, le=10_000)] = 200
    """Most files of a task."""
    max_files_bytes: Bytes = 16_777_216
    """Most bytes of a task's files together."""
    retention_days: Days = 30
    """Days after which a tree that has ended is deleted with its events and files."""
    webhooks: Webhooks = field(default_factory=Webhooks)
    """Calls to clients."""


class Choice(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which models may answer a kind of request, and in which order."""

    models: tuple[Name, ...] = ()
    """Ids of models in order: the first that can serve answers, the rest stand by; no others. Empty = all that routing knows."""
    tiers: tuple[Tier, ...] = ()
    """Only models of these tiers. Empty = of any."""
    min_quality: Annotated[float, Meta(ge=0, le=10)] | None = None
    """Models of less quality come last. None = as the path says."""
    path: Literal["fast", "standard", "complex"] | None = None
    """For a task type: its order is this path's. None = by the complexity of the request."""


FAST, STANDARD, COMPLEX = Choice(min_quality=5.0), Choice(min_quality=7.0), Choice(min_quality=8.0)


class Paths(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What each path of complexity means."""

    fast: Choice = FAST
    """Simple requests: the cheapest model of quality 5 or more."""
    standard: Choice = STANDARD
    """Requests of some work: the cheapest of quality 7 or more."""
    complex: Choice = COMPLEX
    """Large requests: the best model."""


class Routing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How models are chosen. [routing.md](routing.md) explains it."""

    require_task_type: bool = True
    """False = requests for the model `auto` may leave their task type out (R-003-5); their complexity then decides."""
    task_types: Mapping[str, Choice] = field(default_factory=dict)
    """Task type -> models (R-003-5), over the built-in table: `extraction`, `classification`, `summary` and `translation` take
    the path fast, `code`, `creative` and `chat` by their complexity, `reasoning` and `research` complex."""
    fast_below: Annotated[float, Meta(ge=0, le=1)] = 0.3
    """Score of complexity below which a request takes the path fast (R-000-34)."""
    complex_from: Annotated[float, Meta(ge=0, le=1)] = 0.7
    """Score from which on it takes the path complex; between the two, standard."""
    paths: Paths = field(default_factory=Paths)
    """What the paths mean."""
    fallbacks: Literal["none", "tier", "any"] = "any"
    """Which other models stand by for a routed one: none, those of its tier, or then those of the tiers primary, edge, flagship (R-002-7)."""
    cards: Mapping[str, Card] = field(default_factory=dict)
    """What is known about models, by `provider/model` or the id of a model of your own; goes over the built-in list."""
    record_outcomes: bool = True
    """Record how requests routed by complexity ended and whether the client asked again, without their text, for
    `hortator router train` ([routing-complexity.md](routing-complexity.md))."""
    complexity_data: Path | None = None
    """Weights of the complexity score, as `hortator router train` writes them. None = those that are shipped."""


class Logging(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The log on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important kind of line that is written."""
    format: Literal["text", "json"] = "text"
    """How a line looks: for people, or one JSON object. Either way one line a record, without stack traces or keys; requests
    are not logged, the admin listener lists them."""


class Tracing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """OpenTelemetry traces of requests. Needs the extra `hortator[otel]`."""

    endpoint: str | None = None
    """Address of a collector that takes OTLP over HTTP, e.g. `http://127.0.0.1:4318`; `/v1/traces` is appended. None = no traces."""
    headers: Mapping[str, Secret] = field(default_factory=dict)
    """Headers for the collector, e.g. `authorization`. Never printed."""
    ratio: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """Share of requests that are traced. A request that carries `traceparent` is traced if that says so."""
    service_name: Name = "hortator"
    """What the spans' `service.name` says."""


class Reload(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Changes of the configuration while the server runs. `docs/operations.md` lists what needs a restart."""

    watch_seconds: Annotated[float, Meta(ge=0, le=3600)] = 2.0
    """Seconds between two looks at the files of the configuration. A change counts once they look the same twice, so that a file
    being written is not read half. 0 = only on SIGHUP."""


class Document(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `hortator.yaml` may hold."""

    server: Server = field(default_factory=Server)
    """The listener for clients."""
    admin: Admin = field(default_factory=Admin)
    """The listener for operators."""
    store: Store = field(default_factory=Store)
    """Where tenants, keys and usage are kept."""
    identity: Identity = field(default_factory=Identity)
    """The cache of keys in front of the store."""
    redis: Redis = field(default_factory=Redis)
    """Where several replicas count limits together."""
    limits: Limits = field(default_factory=Limits)
    """How the limits of tenants and keys are counted."""
    admission: Admission = field(default_factory=Admission)
    """How many calls run at once."""
    ledger: Ledger = field(default_factory=Ledger)
    """Usage records on their way to the store."""
    files: Files = field(default_factory=Files)
    """What clients send to `/v1/files`, and the results of batches."""
    batches: Batches = field(default_factory=Batches)
    """The work of `/v1/batches`."""
    orchestration: Orchestration = field(default_factory=Orchestration)
    """Teams of agents behind `hortator/...` models and the task API. [orchestration.md](orchestration.md) explains it."""
    stream: Streaming = field(default_factory=Streaming)
    """Streamed replies."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    """How long an upstream may take."""
    responses: Responses = field(default_factory=Responses)
    """What is kept of `/v1/responses`."""
    retry: Retry = field(default_factory=Retry)
    """What is done about a failure before an answer began."""
    breaker: Breaker = field(default_factory=Breaker)
    """When a deployment is left alone."""
    upstream: Upstream = field(default_factory=Upstream)
    """Connections to providers."""
    detect_providers: bool = True
    """Add the providers whose keys are in the environment, and an Ollama on 127.0.0.1:11434, unless `providers` has that id."""
    providers: tuple[Provider, ...] = ()
    """Providers of models."""
    models: tuple[NamedModel, ...] = ()
    """Models of your own naming, each over several deployments."""
    local_services: bool = False
    """Add four model services on this machine, 127.0.0.1:11400 to 11403: `mixtral/Mixtral-8x7B`, `hermes/Hermes-2`,
    `openchat/OpenChat-3.5`, `phi/Phi-3-Mini`, and `local-services`, which is any of them (R-004-2), unless these ids are taken."""
    routing: Routing = field(default_factory=Routing)
    """How models are chosen."""
    local: Local = field(default_factory=Local)
    """The embedded model."""
    logging: Logging = field(default_factory=Logging)
    """The log on standard error."""
    tracing: Tracing = field(default_factory=Tracing)
    """OpenTelemetry traces of requests."""
    reload: Reload = field(default_factory=Reload)
    """Changes of the configuration while the server runs."""


class Settings(Document, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration, checked: the document and where it came from."""

    home: Path
    """Folder of the database, the journal and the models: HORTATOR_HOME, else `hortator` in the user's data folder."""
    source: Path | None = None
    """The file that was read; None = there is none, and the defaults hold."""
    env_file: Path | None = None
    """The file of variables that was read; None = none."""
    variables: tuple[str, ...] = ()
    """Names of the environment variables that were used, sorted."""
    ignored_variables: tuple[str, ...] = ()
    """Names of HORTATOR_ variables that mean nothing here, sorted; mostly set for other programs or misspelt."""
