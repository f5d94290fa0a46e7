/* A load generator for OpenAI-compatible gateways on loopback: one thread, one epoll, one JSON line of results on stdout.
 *
 *     load --port P --path /v1/chat/completions --body FILE [--header "name: value"]... [--connections 64] [--seconds 4]
 *          [--rate R] [--stream] [--expect TEXT] [--drain-seconds 30]
 *
 * Closed loop: each connection sends its next request when the reply is whole. Paced (--rate): requests are due at fixed times and
 * latency counts from the due time, so a stalled gateway cannot hide its queue. Streams: the first byte is the first event with
 * content, and a stream is complete when [DONE] came. After --seconds nothing new is sent; what is in flight is waited for and
 * counted, so slow replies do not vanish: `requests` is all, `window_requests` those within the time. `rps` is the higher of window
 * requests per second and all requests per time to the last reply; the latter is kinder to a gateway whose first wave outlasts the
 * time. Every reply must be 2xx and contain --expect; all else is an error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_REPLY (64ul * 1024 * 1024)
#define MAX_HEADERS 32
#define SUB_BITS 8
#define SUB_BUCKETS (1 << SUB_BITS)

enum framing { BY_LENGTH, CHUNKED, BY_CLOSE };

struct connection {
    int fd, busy, in_body, status, connected, closes;
    enum framing framing;
    size_t request_sent;
    char *in, *body; /* in: bytes not consumed yet; body: payload of this reply, a stream's is consumed line by line */
    size_t in_length, in_capacity, body_length, body_capacity, length_left, chunk_left;
    int chunk_ended, done_seen, events, matched;
    uint64_t started, first_content;
    long served;
};

struct histogram {
    uint64_t buckets[SUB_BUCKETS * 40], count, sum, max;
};

static struct connection *connections;
static struct sockaddr_in address;
static struct histogram latency, first_byte;
static char *request, *expect, first_error[400];
static size_t request_length;
static int connection_count = 64, stream, epoll_fd, in_flight, live;
static int *idle, idle_count;
static double seconds = 4, drain_seconds = 30, rate;
static uint64_t begin, deadline, last_finish, sent_total;
static uint64_t ok, window_ok, bad_status, bad_body, broken, connect_failures, reconnects, received_bytes, content_events, streams_done;
static int events_min = 1 << 30, events_max;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- histogram: 128 buckets to each power of two, at most 0.8 % wide --------------------------------------------------------- */

static void record(struct histogram *h, uint64_t ns) {
    int power = ns < SUB_BUCKETS ? 0 : 64 - __builtin_clzll(ns) - SUB_BITS;
    uint64_t index = power ? (uint64_t)power * SUB_BUCKETS / 2 + (ns >> power) : ns;
    if (index >= SUB_BUCKETS * 40) index = SUB_BUCKETS * 40 - 1;
    h->buckets[index]++;
    h->count++;
    h->sum += ns;
    if (ns > h->max) h->max = ns;
}

static double percentile_us(const struct histogram *h, double share) {
    uint64_t wanted = (uint64_t)(share * (double)h->count + 0.5), seen = 0;
    if (!h->count) return 0;
    if (wanted < 1) wanted = 1;
    for (uint64_t i = 0; i < SUB_BUCKETS * 40; i++) {
        seen += h->buckets[i];
        if (seen < wanted) continue;
        if (i < SUB_BUCKETS) return (double)i / 1000;
        uint64_t power = i / (SUB_BUCKETS / 2) - 1, low = (i - power * SUB_BUCKETS / 2) << power;
        return (double)(low + (1ull << power) / 2) / 1000;
    }
    return (double)h->max / 1000;
}

/* ---- connections -------------------------------------------------------------------------------------------------------------- */

static void grow(char **data, size_t *capacity, size_t wanted) {
    if (*capacity >= wanted) return;
    size_t size = *capacity ? *capacity : 8192;
    while (size < wanted) size *= 2;
    *data = realloc(*data, size);
    if (!*data) die("realloc");
    *capacity = size;
}

static void watch(struct connection *c, int operation, int wants_write) {
    struct epoll_event event = {.events = EPOLLIN | (wants_write ? EPOLLOUT : 0), .data.u32 = (uint32_t)(c - connections)};
    if (epoll_ctl(epoll_fd, operation, c->fd, &event)) die("epoll_ctl");
}

static void open_connection(struct connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->connected = 0;
    c->in_length = 0;
    c->served = 0;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) die("connect");
    watch(c, EPOLL_CTL_ADD, 1);
}

static void close_connection(struct connection *c) {
    if (c->connected) live--;
    close(c->fd);
    c->fd = -1;
    c->connected = 0;
}

static void make_idle(struct connection *c) {
    c->busy = 0;
    idle[idle_count++] = (int)(c - connections);
}

static void note_error(const char *kind, const struct connection *c) {
    if (first_error[0]) return;
    size_t length = c->body_length < 250 ? c->body_length : 250;
    snprintf(first_error, sizeof first_error, "%s %d: %.*s", kind, c->status, (int)length, c->body ? c->body : "");
}

static void write_request(struct connection *c) {
    ssize_t sent = send(c->fd, request + c->request_sent, request_length - c->request_sent, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return; /* the read side reports it */
    size_t before = c->request_sent;
    if (sent > 0) c->request_sent += (size_t)sent;
    if (c->request_sent < request_length) watch(c, EPOLL_CTL_MOD, 1);
    else if (before) watch(c, EPOLL_CTL_MOD, 0);
}

static void start(struct connection *c, uint64_t counted_from) {
    c->busy = 1;
    c->in_body = c->status = c->chunk_ended = c->done_seen = c->events = c->matched = c->closes = 0;
    c->request_sent = c->body_length = c->chunk_left = c->length_left = 0;
    c->first_content = 0;
    c->started = counted_from;
    in_flight++;
    sent_total++;
    if (c->connected) write_request(c);
}

static void lost(struct connection *c) {
    int was_connected = c->connected, retry = c->busy && !c->status && !c->in_length && c->served;
    if (!was_connected) connect_failures++;
    else reconnects++;
    close_connection(c);
    if (c->busy && retry) { /* a kept connection closed under our feet: every client sends again, the clock goes on */
        c->request_sent = 0;
    } else if (c->busy) {
        broken++;
        note_error("connection lost", c);
        in_flight--;
        make_idle(c);
    }
    if (connect_failures > 1000) die("too many failed connects");
    open_connection(c);
}

/* ---- replies -------------------------------------------------------------------------------------------------------------------- */

static void judge(struct connection *c, uint64_t now) {
    in_flight--;
    last_finish = now;
    c->served++;
    int good = c->status >= 200 && c->status < 300;
    if (!good) {
        bad_status++;
        note_error("status", c);
    } else if (stream ? !c->done_seen : (expect && !memmem(c->body, c->body_length, expect, strlen(expect)))) {
        bad_body++;
        note_error(stream ? "no [DONE]" : "unexpected body", c);
        good = 0;
    } else if (stream && expect && !c->matched) {
        bad_body++;
        note_error("unexpected stream", c);
        good = 0;
    }
    if (good) {
        ok++;
        if (now <= deadline) window_ok++;
        record(&latency, now - c->started);
        if (stream) {
            streams_done++;
            content_events += (uint64_t)c->events;
            if (c->events < events_min) events_min = c->events;
            if (c->events > events_max) events_max = c->events;
            if (c->first_content) record(&first_byte, c->first_content - c->started);
        }
    }
    make_idle(c);
    if (c->closes) {
        reconnects++;
        close_connection(c);
        open_connection(c);
    }
}

static void on_event(struct connection *c, const char *line, size_t length, uint64_t now) {
    if (length < 5 || memcmp(line, "data:", 5)) return;
    const char *value = line + 5;
    size_t left = length - 5;
    while (left && *value == ' ') value++, left--;
    if (left >= 6 && !memcmp(value, "[DONE]", 6)) {
        c->done_seen = 1;
        return;
    }
    if (expect && !c->matched && memmem(value, left, expect, strlen(expect))) c->matched = 1;
    const char *content = memmem(value, left, "\"content\":", 10);
    if (!content) return;
    content += 10;
    if (content < value + left && *content == ' ') content++;
    if (content + 1 >= value + left || *content != '"' || content[1] == '"') return;
    c->events++;
    if (!c->first_content) c->first_content = now;
}

static void take_payload(struct connection *c, const char *data, size_t length, uint64_t now) {
    if (c->body_length + length > MAX_REPLY) die("reply too large");
    grow(&c->body, &c->body_capacity, c->body_length + length + 1);
    memcpy(c->body + c->body_length, data, length);
    c->body_length += length;
    c->body[c->body_length] = 0;
    if (!stream || c->status >= 300) return;
    char *line = c->body, *end;
    while ((end = memchr(line, '\n', c->body_length - (size_t)(line - c->body)))) {
        on_event(c, line, (size_t)(end - line), now);
        line = end + 1;
    }
    c->body_length -= (size_t)(line - c->body);
    memmove(c->body, line, c->body_length);
}

/* Returns bytes used, 0 when the head is not whole yet. */
static size_t read_head(struct connection *c) {
    char *end = memmem(c->in, c->in_length, "\r\n\r\n", 4);
    if (!end) return 0;
    if (c->in_length < 12 || memcmp(c->in, "HTTP/1.", 7)) die("not an HTTP reply");
    c->status = atoi(c->in + 9);
    c->framing = BY_CLOSE;
    c->closes = c->in[7] == '0';
    for (char *line = strstr(c->in, "\r\n") + 2; line < end; line = strstr(line, "\r\n") + 2) {
        if (!strncasecmp(line, "content-length:", 15)) {
            c->framing = BY_LENGTH;
            c->length_left = strtoul(line + 15, NULL, 10);
        } else if (!strncasecmp(line, "transfer-encoding:", 18)) {
            c->framing = CHUNKED;
        } else if (!strncasecmp(line, "connection: close", 17)) {
            c->closes = 1;
        }
    }
    c->in_body = 1;
    return (size_t)(end - c->in) + 4;
}

/* Consume what it can of a chunked body at `data`; sets chunk_ended at its end. Returns bytes used. */
static size_t read_chunks(struct connection *c, const char *data, size_t length, uint64_t now) {
    size_t used = 0;
    while (used < length && !c->chunk_ended) {
        if (c->chunk_left > 2) {
            size_t take = length - used < c->chunk_left - 2 ? length - used : c->chunk_left - 2;
            take_payload(c, data + used, take, now);
            used += take;
            c->chunk_left -= take;
        } else if (c->chunk_left) {
            size_t take = length - used < c->chunk_left ? length - used : c->chunk_left;
            used += take;
            c->chunk_left -= take;
        } else {
            const char *end = memmem(data + used, length - used, "\r\n", 2);
            if (!end) break;
            size_t size = strtoul(data + used, NULL, 16), head = (size_t)(end - data) + 2 - used;
            if (!size && length - used < head + 2) break;
            used += head + (size ? 0 : 2);
            if (size) c->chunk_left = size + 2;
            else c->chunk_ended = 1;
        }
    }
    return used;
}

/* Returns 1 when the reply that was in flight is whole. */
static int consume(struct connection *c, uint64_t now) {
    size_t used = 0;
    int whole = 0;
    if (!c->in_body) {
        used = read_head(c);
        if (!c->in_body) return 0;
        if (c->status < 200) { /* an interim reply */
            c->in_body = c->status = 0;
        }
    }
    if (c->in_body) {
        size_t left = c->in_length - used;
        if (c->framing == CHUNKED) {
            used += read_chunks(c, c->in + used, left, now);
            whole = c->chunk_ended;
        } else {
            size_t take = c->framing == BY_LENGTH && left > c->length_left ? c->length_left : left;
            take_payload(c, c->in + used, take, now);
            used += take;
            if (c->framing == BY_LENGTH) c->length_left -= take;
            whole = c->framing == BY_LENGTH && !c->length_left;
        }
    }
    memmove(c->in, c->in + used, c->in_length - used);
    c->in_length -= used;
    return whole;
}

static void on_readable(struct connection *c) {
    grow(&c->in, &c->in_capacity, c->in_length + 16384);
    ssize_t got = recv(c->fd, c->in + c->in_length, c->in_capacity - c->in_length - 1, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        if (c->busy && c->in_body && c->framing == BY_CLOSE) {
            c->closes = 1;
            judge(c, now_ns());
            return;
        }
        lost(c);
        return;
    }
    received_bytes += (uint64_t)got;
    if (!c->busy) return; /* bytes nobody asked for */
    c->in_length += (size_t)got;
    c->in[c->in_length] = 0;
    uint64_t now = now_ns();
    if (consume(c, now)) judge(c, now);
}

static void on_writable(struct connection *c) {
    if (!c->connected) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            lost(c);
            return;
        }
        c->connected = 1;
        live++;
        watch(c, EPOLL_CTL_MOD, 0);
        if (c->busy) write_request(c);
    } else if (c->busy && c->request_sent < request_length) {
        write_request(c);
    }
}

/* ---- the run ---------------------------------------------------------------------------------------------------------------------- */

static void send_what_is_due(uint64_t now) {
    if (!begin || now >= deadline) return;
    while (idle_count) {
        uint64_t from = now;
        if (rate > 0) {
            from = begin + (uint64_t)((double)sent_total / rate * 1e9);
            if (from > now || from >= deadline) return;
        }
        start(&connections[idle[--idle_count]], from);
    }
}

static uint64_t next_wake(uint64_t now) {
    uint64_t wake = now < deadline ? deadline : deadline + (uint64_t)(drain_seconds * 1e9);
    if (rate > 0 && now < deadline && idle_count) {
        uint64_t due = begin + (uint64_t)((double)sent_total / rate * 1e9);
        if (due < wake) wake = due;
    }
    return wake > now ? wake - now : 0;
}

static void turn(uint64_t wait_ns) {
    struct epoll_event events[256];
    struct timespec wait = {(time_t)(wait_ns / 1000000000ull), (long)(wait_ns % 1000000000ull)};
    int ready = epoll_pwait2(epoll_fd, events, 256, &wait, NULL);
    if (ready < 0 && errno != EINTR) die("epoll_pwait2");
    for (int i = 0; i < ready; i++) {
        struct connection *c = &connections[events[i].data.u32];
        int fd = c->fd;
        if (events[i].events & EPOLLOUT) on_writable(c);
        if (c->fd == fd && c->connected && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) on_readable(c);
        else if (c->fd == fd && !c->connected && (events[i].events & (EPOLLHUP | EPOLLERR))) lost(c);
        if (begin) send_what_is_due(now_ns());
    }
}

static void run(void) {
    uint64_t connect_by = now_ns() + 10000000000ull;
    for (int i = 0; i < connection_count; i++) {
        open_connection(&connections[i]);
        if (i % 64 == 63) turn(0); /* keep within the listener's backlog */
        make_idle(&connections[i]);
    }
    while (live < connection_count) {
        if (now_ns() > connect_by) die("not all connections could be opened");
        turn(100000000ull);
    }
    begin = now_ns();
    deadline = begin + (uint64_t)(seconds * 1e9);
    uint64_t give_up = deadline + (uint64_t)(drain_seconds * 1e9), now;
    while ((now = now_ns()) < deadline || (in_flight && now < give_up)) {
        send_what_is_due(now);
        turn(next_wake(now_ns()));
    }
}

static void print_quoted(const char *text) {
    putchar('"');
    for (; *text; text++) {
        unsigned char ch = (unsigned char)*text;
        if (ch == '"' || ch == '\\') putchar('\\');
        if (ch >= 32 && ch < 127) putchar(ch);
        else putchar(' ');
    }
    putchar('"');
}

static void print_latency(const char *prefix, const struct histogram *h) {
    printf(",\"%sp50_us\":%.1f,\"%sp99_us\":%.1f,\"%smax_us\":%.1f,\"%smean_us\":%.1f", prefix, percentile_us(h, 0.50), prefix,
           percentile_us(h, 0.99), prefix, (double)h->max / 1000, prefix, h->count ? (double)h->sum / (double)h->count / 1000 : 0.0);
}

static void report(void) {
    double elapsed = last_finish > begin ? (double)(last_finish - begin) / 1e9 : 0, rps = (double)window_ok / seconds;
    if (elapsed > seconds && (double)ok / elapsed > rps) rps = (double)ok / elapsed;
    uint64_t missed = 0; /* paced requests that found no free connection in time */
    if (rate > 0) {
        uint64_t due = (uint64_t)(rate * seconds);
        missed = due > sent_total ? due - sent_total : 0;
    }
    printf("{\"connections\":%d,\"seconds\":%.2f,\"elapsed\":%.3f,\"requests\":%lu,\"window_requests\":%lu,\"rps\":%.1f,\"errors\":%lu,"
           "\"bad_status\":%lu,\"bad_body\":%lu,\"broken\":%lu,\"connect_failures\":%lu,\"unfinished\":%d,\"missed\":%lu,\"reconnects\":%lu,"
           "\"bytes\":%lu",
           connection_count, seconds, elapsed, ok, window_ok, rps,
           bad_status + bad_body + broken + connect_failures + (uint64_t)in_flight, bad_status, bad_body, broken, connect_failures, in_flight,
           missed, reconnects, received_bytes);
    print_latency("", &latency);
    if (stream) {
        printf(",\"streams\":%lu,\"content_events\":%lu,\"events_min\":%d,\"events_max\":%d", streams_done, content_events,
               streams_done ? events_min : 0, events_max);
        print_latency("ttfb_", &first_byte);
    }
    printf(",\"first_error\":");
    print_quoted(first_error);
    printf("}\n");
}

static void build_request(int port, const char *path, char **headers, int header_count, const char *file) {
    FILE *in = fopen(file, "rb");
    if (!in) die(file);
    fseek(in, 0, SEEK_END);
    size_t size = (size_t)ftell(in), used;
    rewind(in);
    request = malloc(size + 65536);
    if (!request) die("malloc");
    used = (size_t)snprintf(request, 4096, "POST %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n",
                            path, port, size);
    for (int i = 0; i < header_count; i++) used += (size_t)snprintf(request + used, 1800, "%.1700s\r\n", headers[i]);
    memcpy(request + used, "\r\n", 2);
    used += 2;
    if (fread(request + used, 1, size, in) != size) die("fread");
    fclose(in);
    request_length = used + size;
}

int main(int argc, char **argv) {
    int port = 0, header_count = 0;
    char *headers[MAX_HEADERS], *body = NULL, *path = "/v1/chat/completions";
    for (int i = 1; i < argc; i++) {
        char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(name, "--stream")) {
            stream = 1;
            continue;
        }
        if (!strcmp(name, "--port")) port = atoi(value);
        else if (!strcmp(name, "--path")) path = value;
        else if (!strcmp(name, "--body")) body = value;
        else if (!strcmp(name, "--header") && header_count < MAX_HEADERS) headers[header_count++] = value;
        else if (!strcmp(name, "--connections")) connection_count = atoi(value);
        else if (!strcmp(name, "--seconds")) seconds = atof(value);
        else if (!strcmp(name, "--drain-seconds")) drain_seconds = atof(value);
        else if (!strcmp(name, "--rate")) rate = atof(value);
        else if (!strcmp(name, "--expect")) expect = value;
        else port = 0, i = argc;
        i++;
    }
    if (!port || !body || connection_count < 1) {
        fprintf(stderr, "usage: load --port P --body FILE [--path /...] [--header H]... [--connections N] [--seconds S] [--rate R] [--stream]\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    build_request(port, path, headers, header_count, body);
    connections = calloc((size_t)connection_count, sizeof *connections);
    idle = calloc((size_t)connection_count + 1, sizeof *idle);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || !idle || epoll_fd < 0) die("start");
    run();
    report();
    return 0;
}
