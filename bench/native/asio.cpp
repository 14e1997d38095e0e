// Echo on Boost.Asio: an io_context per thread and connections dealt out among them in turn, as in
// Asio's example "HTTP Server 2" (an io_context-per-CPU design); each connection as in its example of
// an asynchronous echo server.
//
// package: libboost-dev
// flags: -std=c++17 -pthread

#include <cstdlib>
#include <iostream>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <boost/asio.hpp>
#include <boost/version.hpp>

#include "rival.h"

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

class session : public std::enable_shared_from_this<session> {
public:
    session(tcp::socket socket, const rival_options &options)
        : socket_(std::move(socket)), options_(options),
          buffer_(options.service == RIVAL_ECHO ? std::size_t{RIVAL_BUFFER} : options.size) {}

    void start() {
        error_code ignored;
        socket_.set_option(tcp::no_delay(true), ignored);
        read();
    }

private:
    // A connection that breaks is over; there is nobody to tell.
    void read() {
        auto self = shared_from_this();
        auto handler = [self](error_code error, std::size_t length) {
            if (error) return;
            rival_handle(self->options_.service, self->buffer_.data(), length);
            self->write(length);
        };
        if (options_.service == RIVAL_ECHO)
            socket_.async_read_some(asio::buffer(buffer_), std::move(handler));
        else
            asio::async_read(socket_, asio::buffer(buffer_), std::move(handler));
    }

    void write(std::size_t length) {
        auto self = shared_from_this();
        asio::async_write(socket_, asio::buffer(buffer_, length),
                          [self](error_code error, std::size_t) {
                              if (!error) self->read();
                          });
    }

    tcp::socket socket_;
    const rival_options &options_;
    std::vector<unsigned char> buffer_;
};

class server {
public:
    explicit server(const rival_options &options) : options_(options) {
        for (int i = 0; i < options.threads; ++i) {
            // The hint says that one thread runs it.
            contexts_.push_back(std::make_unique<asio::io_context>(1));
            guards_.push_back(asio::make_work_guard(*contexts_.back()));
        }
        acceptor_ = std::make_unique<tcp::acceptor>(*contexts_.front());
        tcp::endpoint endpoint(asio::ip::make_address(options.host), options.port);
        acceptor_->open(endpoint.protocol());
        acceptor_->set_option(tcp::acceptor::reuse_address(true));
        acceptor_->bind(endpoint);
        acceptor_->listen(RIVAL_BACKLOG);
        accept();
    }

    void run() {
        auto bound = acceptor_->local_endpoint();
        rival_ready(bound.address().to_string().c_str(), bound.port());
        std::vector<std::thread> threads;
        for (auto &context : contexts_) threads.emplace_back([&context] { context->run(); });
        for (auto &thread : threads) thread.join();
    }

private:
    void accept() {
        auto &context = *contexts_[next_++ % contexts_.size()];
        acceptor_->async_accept(context, [this](error_code error, tcp::socket socket) {
            if (!error) {
                auto &executor = static_cast<asio::io_context &>(socket.get_executor().context());
                auto made = std::make_shared<session>(std::move(socket), options_);
                // On the thread that serves it from now on.
                asio::post(executor, [made] { made->start(); });
            }
            accept();
        });
    }

    const rival_options &options_;
    std::vector<std::unique_ptr<asio::io_context>> contexts_;
    std::list<asio::executor_work_guard<asio::io_context::executor_type>> guards_;
    std::unique_ptr<tcp::acceptor> acceptor_;
    std::size_t next_ = 0;
};

int main(int argc, char **argv) {
    std::string version = "Boost.Asio of Boost " + std::to_string(BOOST_VERSION / 100000) + "." +
                          std::to_string(BOOST_VERSION / 100 % 1000) + "." +
                          std::to_string(BOOST_VERSION % 100);
    auto options = rival_parse(argc, argv, version.c_str());
    try {
        server(options).run();
    } catch (const std::exception &error) {
        std::cerr << error.what() << "\n";
        return EXIT_FAILURE;
    }
}
