#include "server.hpp"

#include "connection.hpp"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <chrono>
#include <ctime>
#include <iostream>

namespace net = boost::asio;
using net::use_awaitable;
using std::chrono::milliseconds;

Server::Server(const yinian::Engine& engine, std::string page)
    : engine_(engine), dispatcher_(yinian::Dispatcher::attach(engine)), page_(std::move(page)), started_(std::time(nullptr)),
      io_(1) {}

// A task that throws ends run().
void Server::spawn(net::awaitable<void> task) {
  net::co_spawn(io_, std::move(task), [this](std::exception_ptr thrown) {
    if (!thrown) return;
    failure_ = thrown;
    io_.stop();
  });
}

void Server::run(const net::ip::tcp::endpoint& at, int patience_s) {
  net::ip::tcp::acceptor acceptor(io_, at);
  std::cerr << "listening on http://" << acceptor.local_endpoint() << std::endl;
  spawn(accept(std::move(acceptor)));
  spawn(dispatch());
  spawn(load());
  spawn(drain(patience_s));
  io_.run();
  if (failure_) std::rethrow_exception(failure_);
}

net::awaitable<void> Server::accept(net::ip::tcp::acceptor acceptor) {
  for (;;) {
    boost::system::error_code error;
    net::ip::tcp::socket socket = co_await acceptor.async_accept(net::redirect_error(use_awaitable, error));
    if (!error) {
      net::co_spawn(io_, serve_connection(*this, std::move(socket)), net::detached);
    } else {
      // No descriptors are left, perhaps: clients that go give some back.
      net::steady_timer pause(io_, milliseconds(20));
      co_await pause.async_wait(use_awaitable);
    }
  }
}

// Gives the engine's events to the handlers whenever there are some.
net::awaitable<void> Server::dispatch() {
  net::posix::stream_descriptor events(io_, dispatcher_.fd());
  for (;;) {
    co_await events.async_wait(net::posix::stream_descriptor::wait_read, use_awaitable);
    dispatcher_.dispatch();
  }
}

// Waits for the engine and takes what is known from then on.
net::awaitable<void> Server::load() {
  net::posix::stream_descriptor news(io_, engine_.fd());
  while (!draining_ && !engine_.wait_ready(0)) {
    co_await news.async_wait(net::posix::stream_descriptor::wait_read, use_awaitable);
  }
  if (draining_) co_return;
  model_.emplace(engine_);
  std::cerr << "serving " << model_->name() << std::endl;
}

// While requests finish, others are told to go elsewhere; only then is the door closed.
net::awaitable<void> Server::drain(int patience_s) {
  net::signal_set signals(io_, SIGTERM, SIGINT);
  co_await signals.async_wait(use_awaitable);
  draining_ = true;
  (void)engine_.drain(0);
  net::steady_timer pause(io_);
  const auto until = [&](auto met, auto patience) -> net::awaitable<bool> {
    const auto end = std::chrono::steady_clock::now() + patience;
    while (!met() && std::chrono::steady_clock::now() < end) {
      pause.expires_after(milliseconds(10));
      co_await pause.async_wait(use_awaitable);
    }
    co_return met();
  };
  const bool drained = co_await until([&] { return dispatcher_.size() == 0; }, std::chrono::seconds(patience_s));
  if (!drained) std::cerr << "what still ran after " << patience_s << " s is cancelled" << std::endl;
  dispatcher_.close();
  (void)co_await until([&] { return busy_ == 0; }, std::chrono::seconds(10));
  io_.stop();
}
