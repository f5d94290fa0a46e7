/* A cheap mock of an OpenAI-compatible upstream: one thread, one epoll, about 5 microseconds of CPU a request.
 *
 * POST .../chat/completions answers a chat completion of about 690 bytes or, when the body asks for "stream": true, a stream of
 * --chunks content chunks, one every --gap-ms, then a usage chunk (only if the body asks for "include_usage": true) and [DONE].
 * --delay-ms waits before the reply. GET .../models lists the model, GET /stats counts what happened. Bodies come by Content-Length
 * or chunked. POST .../responses, .../messages and .../embeddings answer a whole reply at once. One request at a time on a connection (no pipelining); Expect: 100-continue is ignored.
 *
 *     mock --port 9000 [--delay-ms 0] [--chunks 50] [--gap-ms 10]
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

#define MAX_CONNECTIONS 65536
#define MAX_HEAD (256 * 1024)
#define MAX_BODY (256ul * 1024 * 1024)
#define MAX_PENDING (1024 * 1024)
#define MAX_CHUNKS 1000

enum phase { READING_HEAD, READING_BODY, READING_CHUNKED, REPLYING };
enum work { NOTHING, JSON_REPLY, STREAM_REPLY };

struct buffer {
    char *data;
    size_t length, capacity;
};

struct connection {
    int fd;
    uint32_t generation; /* timers of an earlier connection on the same descriptor are ignored */
    enum phase phase;
    enum work work;
    struct buffer in, out;
    size_t head_length, body_length, scanned; /* scanned: how far the chunked decoder has read */
    size_t chunk_left;
    int is_chat, is_get, close_after, include_usage, next_chunk, wants_write;
    char path[128];
    uint64_t due;
};

struct timer {
    uint64_t due;
    int fd;
    uint32_t generation;
};

static struct connection *connections[MAX_CONNECTIONS];
static uint32_t generations[MAX_CONNECTIONS];
static struct timer *heap;
static size_t heap_length, heap_capacity;
static int epoll_fd;
static uint64_t delay_ns, gap_ns = 10000000ull;
static int chunk_count = 50;
static uint64_t count_requests, count_streams, count_completed, count_aborted, count_active;

static char json_reply[2048], not_found_reply[512], models_reply[512], response_reply[2048], message_reply[1024], embedding_reply[1024];
static size_t json_reply_length, not_found_reply_length, models_reply_length, response_reply_length, message_reply_length, embedding_reply_length;
static struct buffer stream_parts[MAX_CHUNKS + 2]; /* 0..n-1 chunks, then the end without and with usage */

static const char *WORDS[] = {"All", " roads", " lead", " to", " Rome", ","};

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void reserve(struct buffer *b, size_t capacity) {
    if (b->capacity >= capacity) return;
    size_t wanted = b->capacity ? b->capacity : 4096;
    while (wanted < capacity) wanted *= 2;
    b->data = realloc(b->data, wanted);
    if (!b->data) die("realloc");
    b->capacity = wanted;
}

static void append(struct buffer *b, const char *data, size_t length) {
    reserve(b, b->length + length);
    memcpy(b->data + b->length, data, length);
    b->length += length;
}

/* ---- timers: a binary heap by due time ------------------------------------------------------------------------------------ */

static void heap_push(uint64_t due, struct connection *c) {
    if (heap_length == heap_capacity) {
        heap_capacity = heap_capacity ? heap_capacity * 2 : 1024;
        heap = realloc(heap, heap_capacity * sizeof *heap);
        if (!heap) die("realloc");
    }
    size_t i = heap_length++;
    while (i && heap[(i - 1) / 2].due > due) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = (struct timer){due, c->fd, c->generation};
}

static struct timer heap_pop(void) {
    struct timer top = heap[0], last = heap[--heap_length];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < heap_length) {
        if (child + 1 < heap_length && heap[child + 1].due < heap[child].due) child++;
        if (heap[child].due >= last.due) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

/* ---- the replies, built once -------------------------------------------------------------------------------------------------- */

static size_t whole_reply(char *into, size_t size, const char *status, const char *body) {
    return (size_t)snprintf(into, size, "HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\nx-request-id: req_bench\r\n\r\n%s",
                            status, strlen(body), body);
}

static void http_chunk(struct buffer *b, const char *data, size_t length) {
    char size[32];
    append(b, size, (size_t)snprintf(size, sizeof size, "%zx\r\n", length));
    append(b, data, length);
    append(b, "\r\n", 2);
}

static void build_chunk(int number) {
    static const char *form = "data: {\"id\":\"chatcmpl-bench0000000000000000001\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,"
                              "\"model\":\"bench-model\",\"system_fingerprint\":\"fp_bench\",\"choices\":[{\"index\":0,\"delta\":{%s\"content\":\"%s\"},"
                              "\"finish_reason\":%s}]}\n\n";
    char text[2048];
    int length = 0;
    if (number == 0) length = snprintf(text, sizeof text, form, "\"role\":\"assistant\",", "", "null");
    length += snprintf(text + length, sizeof text - (size_t)length, form, "", WORDS[number % 6], number == chunk_count - 1 ? "\"stop\"" : "null");
    http_chunk(&stream_parts[number], text, (size_t)length);
}

static void build_replies(void) {
    json_reply_length = whole_reply(
        json_reply, sizeof json_reply, "200 OK",
        "{\"id\":\"chatcmpl-bench0000000000000000001\",\"object\":\"chat.completion\",\"created\":1790000000,\"model\":\"bench-model\","
        "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"All roads lead to Rome, and the shortest of them is "
        "the one that somebody had paved long before you ever set out.\",\"refusal\":null,\"annotations\":[]},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
        "\"usage\":{\"prompt_tokens\":210,\"completion_tokens\":50,\"total_tokens\":260,\"prompt_tokens_details\":{\"cached_tokens\":0,"
        "\"audio_tokens\":0},\"completion_tokens_details\":{\"reasoning_tokens\":0,\"audio_tokens\":0,\"accepted_prediction_tokens\":0,"
        "\"rejected_prediction_tokens\":0}},\"service_tier\":\"default\",\"system_fingerprint\":\"fp_bench\"}");
    not_found_reply_length = whole_reply(not_found_reply, sizeof not_found_reply, "404 Not Found",
                                         "{\"error\":{\"message\":\"the mock serves chat completions only\",\"type\":\"invalid_request_error\","
                                         "\"param\":null,\"code\":\"unknown_url\"}}");
    response_reply_length = whole_reply(
        response_reply, sizeof response_reply, "200 OK",
        "{\"id\":\"resp_bench\",\"object\":\"response\",\"created_at\":1790000000,\"status\":\"completed\",\"model\":\"bench-model\",\"error\":null,"
        "\"incomplete_details\":null,\"output\":[{\"type\":\"message\",\"id\":\"msg_bench\",\"status\":\"completed\",\"role\":\"assistant\","
        "\"content\":[{\"type\":\"output_text\",\"text\":\"All roads lead to Rome, and the shortest of them is the one that somebody had paved "
        "long before you ever set out.\",\"annotations\":[]}]}],\"parallel_tool_calls\":true,\"tool_choice\":\"auto\",\"tools\":[],"
        "\"usage\":{\"input_tokens\":210,\"input_tokens_details\":{\"cached_tokens\":0},\"output_tokens\":50,"
        "\"output_tokens_details\":{\"reasoning_tokens\":0},\"total_tokens\":260}}");
    message_reply_length = whole_reply(
        message_reply, sizeof message_reply, "200 OK",
        "{\"id\":\"msg_bench\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"bench-model\",\"content\":[{\"type\":\"text\",\"text\":\"All "
        "roads lead to Rome, and the shortest of them is the one that somebody had paved long before you ever set out.\"}],"
        "\"stop_reason\":\"end_turn\",\"stop_sequence\":null,\"usage\":{\"input_tokens\":210,\"output_tokens\":50}}");
    embedding_reply_length = whole_reply(
        embedding_reply, sizeof embedding_reply, "200 OK",
        "{\"object\":\"list\",\"model\":\"Rome\",\"data\":[{\"object\":\"embedding\",\"index\":0,\"embedding\":[0.25,-0.5,0.125,0.75]}],"
        "\"usage\":{\"prompt_tokens\":210,\"total_tokens\":210}}");
    models_reply_length = whole_reply(models_reply, sizeof models_reply, "200 OK",
                                      "{\"object\":\"list\",\"data\":[{\"id\":\"bench-model\",\"object\":\"model\",\"created\":1790000000,"
                                      "\"owned_by\":\"bench\"}]}");
    for (int i = 0; i < chunk_count; i++) build_chunk(i);
    struct buffer *plain = &stream_parts[MAX_CHUNKS], *with_usage = &stream_parts[MAX_CHUNKS + 1];
    char text[1024];
    int length = snprintf(text, sizeof text,
                          "data: {\"id\":\"chatcmpl-bench0000000000000000001\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,"
                          "\"model\":\"bench-model\",\"system_fingerprint\":\"fp_bench\",\"choices\":[],\"usage\":{\"prompt_tokens\":210,"
                          "\"completion_tokens\":%d,\"total_tokens\":%d,\"prompt_tokens_details\":{\"cached_tokens\":0},"
                          "\"completion_tokens_details\":{\"reasoning_tokens\":0}}}\n\ndata: [DONE]\n\n",
                          chunk_count, 210 + chunk_count);
    http_chunk(with_usage, text, (size_t)length);
    http_chunk(plain, "data: [DONE]\n\n", 14);
    append(with_usage, "0\r\n\r\n", 5);
    append(plain, "0\r\n\r\n", 5);
}

/* ---- connections ---------------------------------------------------------------------------------------------------------------- */

static void drop(struct connection *c) {
    if (c->work != NOTHING) {
        count_aborted++;
        count_active--;
    }
    generations[c->fd]++;
    connections[c->fd] = NULL;
    close(c->fd);
    free(c->in.data);
    free(c->out.data);
    free(c);
}

static void watch(struct connection *c, int wants_write) {
    if (c->wants_write == wants_write) return;
    c->wants_write = wants_write;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (wants_write ? EPOLLOUT : 0), .data.fd = c->fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

/* Returns 0 when the connection is gone. What the peer does not take yet is kept, up to MAX_PENDING. */
static int send_bytes(struct connection *c, const char *data, size_t length) {
    if (!c->out.length) {
        ssize_t sent = send(c->fd, data, length, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return drop(c), 0;
        if (sent < 0) sent = 0;
        if ((size_t)sent == length) return 1;
        data += sent;
        length -= (size_t)sent;
    }
    if (c->out.length + length > MAX_PENDING) return drop(c), 0;
    append(&c->out, data, length);
    watch(c, 1);
    return 1;
}

static int flush(struct connection *c) {
    ssize_t sent = send(c->fd, c->out.data, c->out.length, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN ? 1 : (drop(c), 0);
    memmove(c->out.data, c->out.data + sent, c->out.length - (size_t)sent);
    c->out.length -= (size_t)sent;
    if (!c->out.length) {
        watch(c, 0);
        if (c->close_after && c->phase == READING_HEAD) return drop(c), 0;
    }
    return 1;
}

static int finish(struct connection *c) {
    if (c->work != NOTHING) {
        count_completed++;
        count_active--;
    }
    c->work = NOTHING;
    c->phase = READING_HEAD;
    c->in.length = 0;
    if (c->in.capacity > 65536) {
        free(c->in.data);
        c->in = (struct buffer){0};
    }
    if (c->close_after && !c->out.length) return drop(c), 0;
    return 1;
}

static int send_json(struct connection *c) {
    return send_bytes(c, json_reply, json_reply_length) && finish(c);
}

static int send_stream_part(struct connection *c) {
    if (c->next_chunk < chunk_count) {
        struct buffer *part = &stream_parts[c->next_chunk++];
        if (!send_bytes(c, part->data, part->length)) return 0;
        c->due += gap_ns;
        heap_push(c->due, c);
        return 1;
    }
    struct buffer *end = &stream_parts[MAX_CHUNKS + (c->include_usage ? 1 : 0)];
    return send_bytes(c, end->data, end->length) && finish(c);
}

static int begin_stream(struct connection *c) {
    static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
                               "transfer-encoding: chunked\r\nx-request-id: req_bench\r\n\r\n";
    char first[4096]; /* the head and the first chunk in one write, as a server that answers at once does */
    struct buffer *part = &stream_parts[0];
    memcpy(first, head, sizeof head - 1);
    memcpy(first + sizeof head - 1, part->data, part->length);
    c->next_chunk = 1;
    if (!send_bytes(c, first, sizeof head - 1 + part->length)) return 0;
    c->due = now_ns() + gap_ns;
    heap_push(c->due, c);
    return 1;
}

static int begin_reply(struct connection *c) {
    return c->work == JSON_REPLY ? send_json(c) : begin_stream(c);
}

/* True when `"key": true` occurs in the body, with or without a space. */
static int asks(const char *body, size_t length, const char *key) {
    const char *at = body, *end = body + length;
    size_t key_length = strlen(key);
    while ((at = memmem(at, (size_t)(end - at), key, key_length))) {
        at += key_length;
        while (at < end && (*at == ' ' || *at == ':')) at++;
        if (end - at >= 4 && !memcmp(at, "true", 4)) return 1;
    }
    return 0;
}

static int answer_get(struct connection *c) {
    char body[256], reply[512];
    const char *path = c->path;
    size_t length = strlen(path);
    c->phase = REPLYING;
    if (length >= 7 && !strcmp(path + length - 7, "/models")) return send_bytes(c, models_reply, models_reply_length) && finish(c);
    if (strcmp(path, "/stats")) return send_bytes(c, not_found_reply, not_found_reply_length) && finish(c);
    snprintf(body, sizeof body, "{\"requests\":%lu,\"streams\":%lu,\"completed\":%lu,\"aborted\":%lu,\"active\":%lu}", count_requests,
             count_streams, count_completed, count_aborted, count_active);
    return send_bytes(c, reply, whole_reply(reply, sizeof reply, "200 OK", body)) && finish(c);
}

static int answer(struct connection *c) {
    const char *body = c->in.data + c->head_length;
    if (c->is_get) return answer_get(c);
    c->phase = REPLYING;
    if (strstr(c->path, "/responses")) return send_bytes(c, response_reply, response_reply_length) && finish(c);
    if (strstr(c->path, "/messages")) return send_bytes(c, message_reply, message_reply_length) && finish(c);
    if (strstr(c->path, "/embeddings")) return send_bytes(c, embedding_reply, embedding_reply_length) && finish(c);
    if (!c->is_chat) return send_bytes(c, not_found_reply, not_found_reply_length) && finish(c);
    c->work = asks(body, c->body_length, "\"stream\"") ? STREAM_REPLY : JSON_REPLY;
    c->include_usage = asks(body, c->body_length, "\"include_usage\"");
    count_requests++;
    count_active++;
    if (c->work == STREAM_REPLY) count_streams++;
    if (!delay_ns) return begin_reply(c);
    c->next_chunk = 0;
    heap_push(now_ns() + delay_ns, c);
    return 1;
}

/* ---- reading ---------------------------------------------------------------------------------------------------------------------- */

/* Decode in place what has arrived of a chunked body. 1: whole, 0: more to come, -1: not HTTP. */
static int decode_chunked(struct connection *c) {
    char *base = c->in.data;
    for (;;) {
        size_t rest = c->in.length - c->scanned;
        if (c->chunk_left) { /* data and its CRLF; the CRLF is not copied */
            size_t take = rest < c->chunk_left ? rest : c->chunk_left;
            size_t data = c->chunk_left > 2 ? c->chunk_left - 2 : 0;
            if (data > take) data = take;
            memmove(base + c->head_length + c->body_length, base + c->scanned, data);
            c->body_length += data;
            c->scanned += take;
            c->chunk_left -= take;
            if (c->chunk_left) break;
            continue;
        }
        char *line = base + c->scanned, *end = memmem(line, rest, "\r\n", 2);
        if (!end) break;
        char *stop;
        unsigned long size = strtoul(line, &stop, 16);
        if (stop == line || size > MAX_BODY) return -1;
        if (size == 0) { /* the last chunk; trailers are not expected from our clients */
            if (rest < (size_t)(end - line) + 4) break;
            return 1;
        }
        c->scanned += (size_t)(end - line) + 2;
        c->chunk_left = size + 2;
    }
    /* forget the raw bytes already decoded, so that memory grows with the body and not with its framing */
    size_t kept = c->in.length - c->scanned, at = c->head_length + c->body_length;
    if (c->scanned > at) {
        memmove(base + at, base + c->scanned, kept);
        c->scanned = at;
        c->in.length = at + kept;
    }
    return 0;
}

/* Returns 0 when it is not HTTP. */
static int parse_head(struct connection *c, char *end) {
    char *line = c->in.data, *stop = memmem(line, (size_t)(end - line) + 2, "\r\n", 2);
    char *space = memchr(line, ' ', (size_t)(stop - line));
    char *second = space ? memchr(space + 1, ' ', (size_t)(stop - space - 1)) : NULL;
    if (!second) return 0;
    size_t length = (size_t)(second - space - 1);
    if (length >= sizeof c->path) length = sizeof c->path - 1;
    memcpy(c->path, space + 1, length);
    c->path[length] = 0;
    c->is_get = !strncmp(line, "GET ", 4);
    c->is_chat = strstr(c->path, "/chat/completions") != NULL;
    c->close_after = !memcmp(stop - 3, "1.0", 3);
    c->head_length = (size_t)(end - c->in.data) + 4;
    c->body_length = 0;
    c->phase = READING_BODY;
    for (line = stop + 2; line < end; line = stop + 2) {
        stop = memmem(line, (size_t)(end - line) + 2, "\r\n", 2);
        if (!strncasecmp(line, "content-length:", 15)) c->body_length = strtoul(line + 15, NULL, 10);
        if (!strncasecmp(line, "transfer-encoding:", 18) && memmem(line, (size_t)(stop - line), "chunked", 7)) c->phase = READING_CHUNKED;
        if (!strncasecmp(line, "connection:", 11)) {
            if (memmem(line, (size_t)(stop - line), "close", 5)) c->close_after = 1;
        }
    }
    if (c->body_length > MAX_BODY) return 0;
    if (c->phase == READING_CHUNKED) {
        c->body_length = 0;
        c->scanned = c->head_length;
        c->chunk_left = 0;
    } else {
        reserve(&c->in, c->head_length + c->body_length + 1);
    }
    return 1;
}

static int advance(struct connection *c) {
    if (c->phase == READING_HEAD) {
        char *end = memmem(c->in.data, c->in.length, "\r\n\r\n", 4);
        if (!end) return c->in.length < MAX_HEAD ? 1 : (drop(c), 0);
        if (!parse_head(c, end)) return drop(c), 0;
    }
    if (c->phase == READING_BODY && c->in.length >= c->head_length + c->body_length) return answer(c);
    if (c->phase == READING_CHUNKED) {
        int state = decode_chunked(c);
        if (state < 0 || c->body_length > MAX_BODY) return drop(c), 0;
        if (state) return answer(c);
    }
    return 1;
}

static void on_readable(struct connection *c) {
    for (;;) {
        reserve(&c->in, c->in.length + 4096);
        size_t room = c->in.capacity - c->in.length - 1;
        ssize_t got = recv(c->fd, c->in.data + c->in.length, room, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0 || c->phase == REPLYING) return drop(c); /* gone, or talking before we answered */
        c->in.length += (size_t)got;
        c->in.data[c->in.length] = 0;
        if (!advance(c)) return;
        if ((size_t)got < room) return;
    }
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
        if (fd < 0) return;
        if (fd >= MAX_CONNECTIONS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct connection *c = calloc(1, sizeof *c);
        if (!c) die("calloc");
        c->fd = fd;
        c->generation = generations[fd];
        connections[fd] = c;
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

static void run_timers(void) {
    uint64_t now = now_ns();
    while (heap_length && heap[0].due <= now) {
        struct timer t = heap_pop();
        struct connection *c = connections[t.fd];
        if (!c || c->generation != t.generation) continue;
        if (c->next_chunk) send_stream_part(c);
        else begin_reply(c);
    }
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) die("mock: listen");
    return fd;
}

int main(int argc, char **argv) {
    int port = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        double value = atof(argv[i + 1]);
        if (!strcmp(argv[i], "--port")) port = (int)value;
        else if (!strcmp(argv[i], "--delay-ms")) delay_ns = (uint64_t)(value * 1e6);
        else if (!strcmp(argv[i], "--gap-ms")) gap_ns = (uint64_t)(value * 1e6);
        else if (!strcmp(argv[i], "--chunks")) chunk_count = (int)value;
        else port = 0, i = argc;
    }
    if (!port || chunk_count < 1 || chunk_count > MAX_CHUNKS) {
        fprintf(stderr, "usage: mock --port P [--delay-ms D] [--chunks 1..%d] [--gap-ms G]\n", MAX_CHUNKS);
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    build_replies();
    int listener = listen_on(port);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[256];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        struct timespec wait = {0, 0}, *timeout = NULL;
        if (heap_length) {
            uint64_t now = now_ns(), left = heap[0].due > now ? heap[0].due - now : 0;
            wait.tv_sec = (time_t)(left / 1000000000ull);
            wait.tv_nsec = (long)(left % 1000000000ull);
            timeout = &wait;
        }
        int ready = epoll_pwait2(epoll_fd, events, 256, timeout, NULL);
        if (ready < 0 && errno != EINTR) die("epoll_pwait2");
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd == listener) {
                accept_all(listener);
                continue;
            }
            struct connection *c = connections[events[i].data.fd];
            if (!c) continue;
            if ((events[i].events & EPOLLOUT) && !flush(c)) continue;
            if (events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) on_readable(c);
        }
        run_timers();
    }
}
