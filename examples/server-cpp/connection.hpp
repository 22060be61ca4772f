// One client: its requests are read and answered one after the other.
#pragma once

#include "server.hpp"

#include <boost/asio/awaitable.hpp>

boost::asio::awaitable<void> serve_connection(Server& server, boost::asio::ip::tcp::socket socket);
