// The `try_` half of the C++ wrapper: compiled with and without exceptions.
#include "test.hpp"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

using yinian::Engine, yinian::Event, yinian::Events, yinian::Finish, yinian::Queue, yinian::Request, yinian::Status;

static_assert(!std::is_copy_constructible_v<Engine> && std::is_nothrow_move_constructible_v<Engine>);
static_assert(!std::is_copy_constructible_v<Queue> && std::is_nothrow_move_assignable_v<Queue>);

static void a_stream_says_what_the_whole_answer_says(const std::string& model, const std::string& expected) {
  const Engine engine = open(R"({"model": ")" + model + R"(", "log_level": "off"})");
  const auto request = Request::text("Once upon a time").max_tokens(48).temperature(0).flags(YN_REQ_IGNORE_EOS);
  std::string streamed;
  const auto end = engine.try_stream(request, [&](std::string_view delta) { streamed.append(delta); });
  CHECK(end && end->finish == Finish::length && end->completion_tokens == 48);
  CHECK(end->t_submit_ns <= end->t_first_ns && end->t_first_ns <= end->t_end_ns);
  const auto whole = engine.try_generate(request);
  CHECK(whole && whole->text() == streamed && !streamed.empty());
  CHECK(expected.empty() || streamed == expected);
}

static void errors_have_a_status_and_a_message() {
  const auto typo = Engine::try_open(R"({"model": "mock:words", "max_num_seq": 4})");
  CHECK(!typo && typo.error().status() == Status::invalid && !typo.error().retry());
  CHECK(std::string(typo.error().what()).find("max_num_seqs") != std::string::npos);
  const auto missing = Engine::try_open(R"({"model": "/no/such/model"})");
  CHECK(!missing && missing.error().status() == Status::not_found);
  const Engine engine = open(R"({"model": "mock:words"})");
  const auto nothing = [](std::string_view) {};
  const auto wrong = engine.try_stream(Request::text("x").max_tokens(0), nothing);
  CHECK(!wrong && wrong.error().status() == Status::invalid);
  CHECK(std::string(wrong.error().what()).find("max_tokens") != std::string::npos);
  // Found by the library's threads, so it comes with the end of the request.
  const auto late = engine.try_stream(Request::tokens({1, 2, 99999}), nothing);
  CHECK(!late && late.error().status() == Status::invalid);
  CHECK(std::string(late.error().what()).find("99999") != std::string::npos);
  CHECK(!engine.try_stream(Request::chat("{"), nothing));
}

static void cancel_and_deadline_end_a_stream() {
  const Engine engine = open(R"({"model": "mock:words,delay_us=1000"})");
  int deltas = 0;
  auto end = engine.try_stream(endless("hello"), [&](std::string_view) { return ++deltas < 3; });
  CHECK(end && end->finish == Finish::cancelled && end->completion_tokens >= 3 && end->completion_tokens < 20000);
  end = engine.try_stream(endless("hello").timeout_ms(40), [](const Event&) {});
  CHECK(end && end->finish == Finish::deadline);
  end = engine.try_stream(endless("hello"), [&](const Event& e) { engine.cancel(e.request_id()); });
  CHECK(end && end->finish == Finish::cancelled);
  wait_idle(engine);
}

static void any_text_crosses_whole() {
  const Engine engine = open(R"({"model": "mock:words"})");
  const std::string text("\xF0\x9F\xA6\x8A\0\xC3\xA9 \xE4\xB8\x80", 11);
  const auto tokenizer = engine.try_tokenizer();
  CHECK(tokenizer);
  const auto ids = tokenizer->try_encode(text);
  CHECK(ids && ids->size() == text.size() && (*ids)[4] == 0 && (*ids)[0] == 0xF0);
  const auto back = tokenizer->try_decode(*ids);
  CHECK(back && *back == text);
  const auto end = engine.try_generate(Request::text(text).max_tokens(5));
  CHECK(end && end->prompt_tokens == text.size());
  const auto same = engine.try_generate(Request::tokens(*ids).max_tokens(5));
  CHECK(same && same->text() == end->text());
  const auto stopped = engine.try_generate(endless("hello").stop_texts({text, "e"}).stop_tokens({'z'}));
  CHECK(stopped && stopped->finish == Finish::stop && stopped->text().find_first_of("ez") == std::string::npos);
}

static void the_demo_tokenizer_round_trips(const std::string& model) {
  auto opened = yinian::Tokenizer::try_open(model);
  CHECK(opened);
  const yinian::Tokenizer tokenizer = *std::move(opened);
  const std::string text("a fox \xF0\x9F\xA6\x8A\0 \xE4\xB8\x80", 15);
  const auto ids = tokenizer.try_encode(text, YN_TOKENIZE_NO_SPECIAL);
  CHECK(ids);
  const auto back = tokenizer.try_decode(*ids);
  CHECK(back && *back == text);
}

static void a_host_polls_its_own_queue() {
  Engine engine = open(R"({"model": "mock:words"})");
  auto created = Queue::try_create();
  CHECK(created);
  Queue queue = *std::move(created);
  const auto fd = queue.try_fd();
  CHECK(fd);
  for (uint64_t i = 1; i <= 20; i++) CHECK(engine.try_submit(endless("hi").max_tokens(300).user_data(i).output(3), &queue));
  Events events(0);
  std::vector<std::size_t> text(21), tokens(21), done(21);
  for (int left = 20; left > 0;) {
    pollfd wait{*fd, POLLIN, 0};
    CHECK(poll(&wait, 1, 10000) == 1);
    const auto got = queue.try_poll(events, 0);
    CHECK(got && *got != events.empty());
    for (const Event e : events) {
      text[e.user_data()] += e.text().size();
      for (const uint32_t token : e.tokens()) tokens[e.user_data()] += token < 256;
      if (e.is_done()) left--, done[e.user_data()]++;
    }
  }
  for (int i = 1; i <= 20; i++) CHECK(done[i] == 1 && text[i] == 300 && tokens[i] == 300);
  close(*fd);
  queue.wake();
  CHECK(!*queue.try_poll(events));
  CHECK(engine.try_submit(endless("left behind"), &queue));
  auto fresh = Queue::try_create();
  CHECK(fresh);
  queue = *std::move(fresh);  // ends what was left behind
  until([&] { return engine.try_stats()->finished == 21; });
  wait_idle(engine);
  Engine moved = std::move(engine);
  engine = open(R"({"model": "mock:words"})");
  std::swap(engine, moved);
  CHECK(engine.try_stats()->finished == 21 && moved.try_stats()->finished == 0);
}

static void a_failed_engine_says_so() {
  const Engine engine = open(R"({"model": "mock:words,hang_step=20", "watchdog_ms": 50, "log_level": "off"})");
  const auto nothing = [](std::string_view) {};
  const auto failed = engine.try_stream(endless("hello"), nothing);
  CHECK(!failed && failed.error().status() == Status::device);
  const auto refused = engine.try_stream(endless("hello"), nothing);
  CHECK(!refused && refused.error().status() == Status::device && refused.error().unusable());
}

static int open_files() {
  int n = 0;
  for (int fd = 0; fd < 1024; fd++) n += fcntl(fd, F_GETFD) != -1;
  return n;
}

void nothrow_tests() {
  const int files = open_files();
  const std::string model = env("YINIAN_TEST_MODEL");
  a_stream_says_what_the_whole_answer_says("mock:words", env("YINIAN_TEST_MOCK_TEXT"));
  CHECK(!model.empty());
  a_stream_says_what_the_whole_answer_says(model, env("YINIAN_TEST_MODEL_TEXT"));
  the_demo_tokenizer_round_trips(model);
  errors_have_a_status_and_a_message();
  cancel_and_deadline_end_a_stream();
  any_text_crosses_whole();
  a_failed_engine_says_so();
  a_host_polls_its_own_queue();
  CHECK(open_files() == files);
}
