/* Echo on libuv: a loop and a listener per thread on the same port (SO_REUSEPORT), so that the
 * kernel deals the connections out; each connection as in libuv's guide: a buffer is allocated when
 * there is something to read, and freed when it is written.
 *
 * package: libuv1-dev
 * flags: -std=gnu11 -pthread -luv
 */

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uv.h>

#include "rival.h"

static struct rival_options options;

struct connection {
    uv_tcp_t tcp;
    /* The beginning of a message, for services that know messages. */
    size_t received;
    unsigned char message[];
};

struct write {
    uv_write_t request;
    uv_buf_t buffer;
};

static void check(const char *what, int code) {
    if (code < 0) {
        fprintf(stderr, "%s: %s\n", what, uv_strerror(code));
        exit(EXIT_FAILURE);
    }
}

static void *allocate(size_t size) {
    void *memory = malloc(size);
    if (!memory) abort();
    return memory;
}

static void closed(uv_handle_t *handle) { free(handle); }

static void written(uv_write_t *request, int status) {
    struct write *write = (struct write *)request;
    uv_handle_t *handle = (uv_handle_t *)request->handle;
    if (status < 0 && !uv_is_closing(handle)) uv_close(handle, closed);
    free(write->buffer.base);
    free(write);
}

/* Sends bytes, and frees them then. */
static void send_back(uv_stream_t *stream, char *bytes, size_t length) {
    struct write *write = allocate(sizeof *write);
    write->buffer = uv_buf_init(bytes, (unsigned)length);
    int code = uv_write(&write->request, stream, &write->buffer, 1, written);
    if (code < 0) {
        free(bytes);
        free(write);
        if (!uv_is_closing((uv_handle_t *)stream)) uv_close((uv_handle_t *)stream, closed);
    }
}

static void allocate_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer) {
    (void)handle;
    (void)suggested;
    *buffer = uv_buf_init(allocate(RIVAL_BUFFER), RIVAL_BUFFER);
}

static void messages(struct connection *connection, const char *bytes, size_t length) {
    while (length > 0 && !uv_is_closing((uv_handle_t *)connection)) {
        size_t more = options.size - connection->received;
        if (more > length) more = length;
        memcpy(connection->message + connection->received, bytes, more);
        connection->received += more;
        bytes += more;
        length -= more;
        if (connection->received == options.size) {
            connection->received = 0;
            rival_handle(options.service, connection->message, options.size);
            char *message = allocate(options.size);
            memcpy(message, connection->message, options.size);
            send_back((uv_stream_t *)connection, message, options.size);
        }
    }
}

static void received(uv_stream_t *stream, ssize_t length, const uv_buf_t *buffer) {
    if (length > 0 && options.service == RIVAL_ECHO) {
        send_back(stream, buffer->base, (size_t)length);
        return;
    }
    if (length > 0) messages((struct connection *)stream, buffer->base, (size_t)length);
    free(buffer->base);
    /* A connection that breaks is over; there is nobody to tell. */
    if (length < 0 && !uv_is_closing((uv_handle_t *)stream))
        uv_close((uv_handle_t *)stream, closed);
}

static void connected(uv_stream_t *listener, int status) {
    if (status < 0) return;
    size_t message = options.service == RIVAL_ECHO ? 0 : options.size;
    struct connection *connection = allocate(sizeof *connection + message);
    connection->received = 0;
    check("uv_tcp_init", uv_tcp_init(listener->loop, &connection->tcp));
    if (uv_accept(listener, (uv_stream_t *)connection) < 0) {
        uv_close((uv_handle_t *)connection, closed);
        return;
    }
    uv_tcp_nodelay(&connection->tcp, 1);
    uv_read_start((uv_stream_t *)connection, allocate_buffer, received);
}

/* A socket that is bound, and may share its port. libuv 1.44 cannot make one itself. */
static int bound(unsigned short *port) {
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(*port)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || inet_pton(AF_INET, options.host, &address.sin_addr) != 1 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) < 0 ||
        bind(fd, (struct sockaddr *)&address, length) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        check(options.host, -errno);
    *port = ntohs(address.sin_port);
    return fd;
}

static void run(void *argument) { check("uv_run", uv_run(argument, UV_RUN_DEFAULT)); }

int main(int argc, char **argv) {
    char version[64];
    snprintf(version, sizeof version, "libuv %s", uv_version_string());
    options = rival_parse(argc, argv, version);
    unsigned short port = options.port;
    uv_thread_t *threads = allocate(sizeof *threads * (size_t)options.threads);
    uv_loop_t *loops = allocate(sizeof *loops * (size_t)options.threads);
    uv_tcp_t *listeners = allocate(sizeof *listeners * (size_t)options.threads);
    for (int i = 0; i < options.threads; i++) {
        check("uv_loop_init", uv_loop_init(&loops[i]));
        check("uv_tcp_init", uv_tcp_init(&loops[i], &listeners[i]));
        check("uv_tcp_open", uv_tcp_open(&listeners[i], bound(&port)));
        check("uv_listen", uv_listen((uv_stream_t *)&listeners[i], RIVAL_BACKLOG, connected));
    }
    rival_ready(options.host, port);
    for (int i = 0; i < options.threads; i++)
        check("uv_thread_create", uv_thread_create(&threads[i], run, &loops[i]));
    for (int i = 0; i < options.threads; i++) uv_thread_join(&threads[i]);
    return 0;
}
