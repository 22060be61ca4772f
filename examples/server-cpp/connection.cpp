#include "connection.hpp"

#include "output.hpp"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

#include <charconv>
#include <chrono>
#include <memory>

namespace beast = boost::beast;
namespace http = beast::http;
namespace net = boost::asio;
using net::use_awaitable;
using boost::system::error_code;

// Bytes of a request's body; how long a client may take to send a request, and to read a piece of its answer.
constexpr std::size_t max_body = 32 << 20;
constexpr std::chrono::seconds idle(120), patience(30);

// Runs a function at the end of a scope.
template <class F>
class Cleanup {
 public:
  explicit Cleanup(F f) : f_(std::move(f)) {}
  Cleanup(const Cleanup&) = delete;
  Cleanup& operator=(const Cleanup&) = delete;
  ~Cleanup() { f_(); }

 private:
  F f_;
};

class Connection {
 public:
  Connection(Server& server, net::ip::tcp::socket socket) : server_(server), stream_(std::move(socket)) {}

  net::awaitable<void> serve() {
    stream_.socket().set_option(net::ip::tcp::no_delay(true));
    while (co_await read()) {
      server_.busy_++;
      const Cleanup cleanup([this] { server_.busy_--; });
      co_await answer();
      if (!keep_alive()) break;
    }
    error_code ignored;
    stream_.socket().shutdown(net::ip::tcp::socket::shutdown_send, ignored);
  }

 private:
  using Parse = Job (*)(const std::string&, const std::string&);

  bool keep_alive() const { return request_.keep_alive() && !server_.draining_; }

  // The next request; false when there is none, or no sense in it.
  net::awaitable<bool> read() {
    error_code error;
    const auto into = [&] { return net::redirect_error(use_awaitable, error); };
    http::request_parser<http::string_body> parser;
    parser.body_limit(max_body);
    stream_.expires_after(idle);
    co_await http::async_read_header(stream_, buffer_, parser, into());
    if (!error && parser.get()[http::field::expect] == "100-continue") {
      static const std::string go_on = "HTTP/1.1 100 Continue\r\n\r\n";
      co_await net::async_write(stream_, net::buffer(go_on), into());
    }
    if (!error) co_await http::async_read(stream_, buffer_, parser, into());
    stream_.expires_never();
    request_ = parser.release();
    id_ = std::string(request_["x-request-id"]);
    if (id_.empty()) id_ = new_id("req-");
    if (!error) co_return true;
    request_.keep_alive(false);
    const ApiError failure = unreadable(error);
    if (failure.status != 0) co_await write(failure);
    co_return false;
  }

  // With status 0 where nobody waits for an answer.
  static ApiError unreadable(const error_code& error) {
    const bool is_http = error.category() == http::make_error_code(http::error::bad_method).category();
    if (error == http::error::body_limit) return {413, "the body is longer than " + std::to_string(max_body) + " bytes"};
    return {is_http && error != http::error::end_of_stream ? 400 : 0, error.message()};
  }

  net::awaitable<void> answer() {
    std::optional<ApiError> failure;
    try {
      co_await route();
    } catch (const ApiError& error) {
      failure = error;
    } catch (const yinian::Error& error) {
      failure = as_api(error);
    }
    if (failure) co_await write(*failure);
  }

  net::awaitable<void> route() {
    const std::string path(request_.target().substr(0, request_.target().find('?')));
    const bool is_chat = path == "/v1/chat/completions", is_generation = is_chat || path == "/v1/completions";
    const bool is_page = path == "/" && !server_.page_.empty();
    if (!is_generation && !is_page && path != "/v1/models" && path != "/health" && path != "/metrics") {
      throw ApiError{404, "there is nothing at " + path};
    }
    const char* method = is_generation ? "POST" : "GET";
    if (request_.method_string() != method) {
      allow_ = method;
      throw ApiError{405, path + " takes " + method};
    }
    if (is_generation) co_await generate(is_chat ? parse_chat : parse_completion);
    else if (is_page) co_await write(200, "text/html; charset=utf-8", server_.page_);
    else if (path == "/v1/models") co_await write(200, models());
    else if (path == "/metrics") co_await write(200, "text/plain; version=0.0.4; charset=utf-8", server_.engine_.metrics());
    else if (const json state = health(); true) co_await write(state["status"] == "ok" ? 200 : 503, state);
  }

  json models() const {
    if (!server_.model_) throw unavailable("the model still loads");
    const json model = {{"id", server_.model_->name()}, {"object", "model"}, {"created", server_.started_}, {"owned_by", "yinian"}};
    return {{"object", "list"}, {"data", json::array({model})}};
  }

  json health() const {
    const uint32_t state = server_.engine_.stats().state;
    if (server_.draining_ || state == YN_STATE_DRAINING) return {{"status", "draining"}};
    return {{"status", state == YN_STATE_FAILED ? "failed" : server_.model_ ? "ok" : "loading"}};
  }

  net::awaitable<void> generate(Parse parse) {
    if (server_.draining_) throw unavailable("the server is draining");
    if (!server_.model_) throw unavailable("the model still loads");
    Job job = parse(request_.body(), server_.model_->name());
    if (const auto ms = timeout_ms()) job.request.timeout_ms(*ms);
    const auto output = std::make_shared<Output>(server_.io_, job.n);
    const auto id = server_.dispatcher_.try_submit(job.request, [output](const yinian::Event& event) { return (*output)(event); });
    if (!id) throw as_api(id.error());
    const auto open = std::make_shared<bool>(true);
    net::co_spawn(server_.io_, watch(this, output, open), net::detached);
    // The request ends with its answer, however that ends; and so does the watch.
    const Cleanup cleanup([this, open, id = *id] {
      *open = false;
      server_.dispatcher_.cancel(id);
      error_code ignored;
      stream_.socket().cancel(ignored);
    });
    Answer text(*server_.model_, job);
    if (job.stream) co_await write_events(job, text, *output);
    else co_await write_whole(job, text, *output);
  }

  std::optional<uint32_t> timeout_ms() const {
    const auto given = request_["x-request-timeout-ms"];
    if (given.empty()) return {};
    uint32_t ms = 0;
    const auto [end, error] = std::from_chars(given.begin(), given.end(), ms);
    if (error == std::errc() && end == given.end() && ms > 0 && ms <= 0x7fffffff) return ms;
    throw ApiError{400, "header x-request-timeout-ms is \"" + std::string(given) + "\"; expected milliseconds, 1 to 2147483647"};
  }

  // Tells when the client goes. While `open` says so, the connection is there.
  static net::awaitable<void> watch(Connection* connection, std::shared_ptr<Output> output, std::shared_ptr<bool> open) {
    error_code error;
    auto& socket = connection->stream_.socket();
    co_await socket.async_wait(net::ip::tcp::socket::wait_read, net::redirect_error(use_awaitable, error));
    if (!*open) co_return;
    char next;
    if (!error) socket.receive(net::buffer(&next, 1), net::ip::tcp::socket::message_peek, error);
    // Its next request may be there already, and hides from now on whether it goes.
    if (error) output->leave();
  }

  net::awaitable<void> write_whole(const Job& job, Answer& text, Output& output) {
    std::vector<yinian::Choice> choices(job.n);
    while (!output.has_ended()) {
      if (!co_await output.more()) co_return;
      for (uint32_t i = 0; i < job.n; i++) {
        if (auto piece = output.take(i)) choices[i].append(*piece);
      }
    }
    co_await write(200, text.whole(choices, output.end()));
  }

  // Answers as HTTP knows errors until there is output; from then on an error is an event.
  net::awaitable<void> write_events(const Job& job, Answer& text, Output& output) {
    for (bool begun = false;;) {
      if (!co_await output.more()) co_return;
      const bool is_last = output.has_ended();
      for (uint32_t i = 0; i < job.n; i++) {
        const auto piece = output.take(i);
        if (!piece) continue;
        if (!std::exchange(begun, true)) co_await begin_events();
        co_await event(dump(text.piece(i, *piece)));
      }
      if (!is_last) continue;
      std::optional<ApiError> failure;
      try {
        const yinian::Completion& end = output.end();
        if (!begun) co_await begin_events();
        if (job.include_usage) co_await event(dump(text.usage_event(end)));
      } catch (const ApiError& error) {
        if (!begun) throw;
        failure = error;
      }
      const std::string last = failure ? dump(failure->body()) : "[DONE]";
      co_await event(last);
      co_await end_events();
      co_return;
    }
  }

  net::awaitable<void> begin_events() {
    http::response<http::empty_body> head;
    start(head, 200, "text/event-stream");
    head.set(http::field::cache_control, "no-cache");
    if (request_.version() >= 11) head.chunked(true);
    else request_.keep_alive(false), head.keep_alive(false);
    http::response_serializer<http::empty_body> serializer(head);
    stream_.expires_after(patience);
    co_await http::async_write_header(stream_, serializer, use_awaitable);
  }

  net::awaitable<void> event(std::string data) {
    data = "data: " + std::move(data) + "\n\n";
    stream_.expires_after(patience);
    if (request_.version() >= 11) co_await net::async_write(stream_, http::make_chunk(net::buffer(data)), use_awaitable);
    else co_await net::async_write(stream_, net::buffer(data), use_awaitable);
  }

  net::awaitable<void> end_events() {
    if (request_.version() >= 11) co_await net::async_write(stream_, http::make_chunk_last(), use_awaitable);
  }

  net::awaitable<void> write(unsigned status, std::string type, std::string body) {
    http::response<http::string_body> response;
    start(response, status, type);
    response.body() = std::move(body);
    response.prepare_payload();
    if (request_.method() == http::verb::head) response.body().clear();
    stream_.expires_after(patience);
    co_await http::async_write(stream_, response, use_awaitable);
  }
  net::awaitable<void> write(unsigned status, const json& body) { return write(status, "application/json", dump(body)); }
  net::awaitable<void> write(const ApiError& error) { return write(unsigned(error.status), error.body()); }

  template <class Response>
  void start(Response& response, unsigned status, const std::string& type) {
    response.result(status);
    response.version(request_.version());
    response.keep_alive(keep_alive());
    response.set(http::field::content_type, type);
    response.set("x-request-id", id_);
    if (status == 429 || status == 503) response.set(http::field::retry_after, "1");
    if (const auto methods = std::exchange(allow_, nullptr)) response.set(http::field::allow, methods);
  }

  static std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

  Server& server_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_;
  http::request<http::string_body> request_;
  std::string id_;
  const char* allow_ = nullptr;
};

net::awaitable<void> serve_connection(Server& server, net::ip::tcp::socket socket) {
  Connection connection(server, std::move(socket));
  try {
    co_await connection.serve();
  } catch (const std::exception&) {
    // The client has gone, or took too long.
  }
}
