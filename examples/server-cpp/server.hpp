// Routes and connections. All of it, the engine's events too, runs on the one thread of an io_context: nothing here is locked.
#pragma once

#include "answer.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>

#include <optional>
#include <string>

class Server {
 public:
  Server(const yinian::Engine& engine, std::string page);
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Serves until SIGTERM or SIGINT: then it refuses new requests, and returns when those that run have finished, or after
  // `patience_s`. Throws when the address cannot be had, or the model not be loaded.
  void run(const boost::asio::ip::tcp::endpoint& at, int patience_s);

 private:
  friend class Connection;
  boost::asio::awaitable<void> accept(boost::asio::ip::tcp::acceptor acceptor);
  boost::asio::awaitable<void> dispatch();
  boost::asio::awaitable<void> load();
  boost::asio::awaitable<void> drain(int patience_s);
  void spawn(boost::asio::awaitable<void> task);

  const yinian::Engine& engine_;
  yinian::Dispatcher dispatcher_;
  const std::string page_;
  const int64_t started_;
  std::optional<Model> model_;  // none while it loads
  bool draining_ = false;
  std::size_t busy_ = 0;  // connections that answer
  std::exception_ptr failure_;
  boost::asio::io_context io_;  // goes first, with all that waits in it
};
