// An HTTP server with OpenAI's API over one model.
//
//   cargo build --release && ln -sf libyinian.so target/release/libyinian.so.0.1
//   c++ -std=c++20 -O2 -pthread -I include -I bindings/cpp examples/server-cpp/*.cpp -o target/server-cpp
//       -L target/release -lyinian -Wl,-rpath,$PWD/target/release
//   target/server-cpp -model examples/demo_model -addr 127.0.0.1:8000 -config '{"max_waiting": 100}' -web examples/web/index.html
//
// It needs the headers of Boost (1.74 or newer) and nlohmann/json, and a compiler with coroutines (g++ 11, clang 16).
// SIGTERM refuses new requests, lets those that run finish, and exits with 0.
#include "server.hpp"

#include <charconv>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>

namespace {

const char* help =
    "usage: server-cpp [-model DIR] [-addr 127.0.0.1:8000] [-config JSON] [-web FILE] [-drain SECONDS]\n"
    "  -model   model directory, or mock:words\n"
    "  -addr    IP address and port to listen on\n"
    "  -config  more of the engine's configuration, a JSON object\n"
    "  -web     an HTML file to serve at /\n"
    "  -drain   how long SIGTERM waits for what runs\n";

std::map<std::string, std::string> parse_options(int argc, char** argv) {
  std::map<std::string, std::string> options = {
      {"-model", ""}, {"-addr", "127.0.0.1:8000"}, {"-config", "{}"}, {"-web", ""}, {"-drain", "60"}};
  for (int i = 1; i < argc; i += 2) {
    const auto option = options.find(argv[i]);
    if (option == options.end() || i + 1 == argc) throw std::invalid_argument(help);
    option->second = argv[i + 1];
  }
  return options;
}

boost::asio::ip::tcp::endpoint parse_address(const std::string& text) {
  const auto colon = text.rfind(':');
  if (colon == std::string::npos) throw std::invalid_argument("-addr " + text + " has no port");
  std::string host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  uint16_t port = 0;
  const auto [rest, error] = std::from_chars(text.data() + colon + 1, text.data() + text.size(), port);
  if (error != std::errc() || rest != text.data() + text.size()) throw std::invalid_argument("-addr " + text + " has no port from 0 to 65535");
  return {boost::asio::ip::make_address(host), port};
}

std::string read_file(const std::string& name) {
  std::ifstream file(name, std::ios::binary);
  std::ostringstream text;
  if (!(text << file.rdbuf())) throw std::runtime_error("-web " + name + " cannot be read, or is empty");
  return text.str();
}

void run(std::map<std::string, std::string> options) {
  json config = json::parse(options["-config"]);
  if (!options["-model"].empty()) config["model"] = options["-model"];
  if (!config.contains("async_load")) config["async_load"] = true;  // so that /health answers meanwhile
  const auto engine = yinian::Engine::open(config.dump());
  Server server(engine, options["-web"].empty() ? "" : read_file(options["-web"]));
  server.run(parse_address(options["-addr"]), std::stoi(options["-drain"]));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(parse_options(argc, argv));
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
