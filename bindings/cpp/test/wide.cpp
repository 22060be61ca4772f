// Choices, logprobs, chats, observing, loading and logs of the C++ wrapper: compiled with and without exceptions.
#include "test.hpp"

#include <unistd.h>

using yinian::Choice, yinian::Engine, yinian::Event, yinian::Events, yinian::Finish, yinian::LogLevel, yinian::LogSink;
using yinian::Queue, yinian::Request, yinian::State, yinian::Status;

static std::string json_of(const std::string& model, const std::string& more = "") {
  return R"({"model": ")" + model + R"(")" + more + "}";
}

static void every_choice_has_its_own_output_and_end(const std::string& model) {
  for (const std::string& name : {std::string("mock:words"), model}) {
    const Engine engine = open(json_of(name));
    const auto request = Request::text("Once upon a time").n(3).max_tokens(20).seed(7).temperature(1).flags(YN_REQ_IGNORE_EOS);
    const auto whole = engine.try_generate(Request(request).output(YN_OUT_TOKENS));
    CHECK(whole && whole->choices.size() == 3 && whole->completion_tokens == 60);
    std::vector<Choice> streamed(3);
    const auto end = engine.try_stream(request, [&](const Event& e) {
      CHECK(e.is_output() && e.choice() < 3 && streamed[e.choice()].finish == Finish::none);
      streamed[e.choice()].text += e.text();
      streamed[e.choice()].finish = e.finish();
    });
    CHECK(end);
    for (std::size_t i = 0; i < 3; i++) {
      CHECK(whole->choices[i].tokens.size() == 20 && whole->choices[i].finish == Finish::length);
      CHECK(streamed[i].text == whole->choices[i].text && streamed[i].finish == Finish::length);
    }
    CHECK(streamed[0].text != streamed[1].text && streamed[1].text != streamed[2].text);
  }
}

static void logprobs_come_with_their_tokens(const std::string& model) {
  const Engine engine = open(json_of(model));
  const auto tokenizer = engine.try_tokenizer();
  CHECK(tokenizer);
  const auto request = Request::text("Once upon a time").max_tokens(24).temperature(0).logprobs(3).prompt_logprobs(2);
  const auto whole = engine.try_generate(request);
  CHECK(whole && whole->choices.size() == 1);
  const Choice& choice = whole->choices[0];
  CHECK(choice.tokens.size() == 24 && choice.logprobs.size() == 24 * 4 && choice.logprobs_of(23).size() == 4 && choice.finish == Finish::length);
  CHECK(choice.logprobs_of(23)[0].text_end == choice.text.size());
  CHECK(whole->prompt.tokens.size() == whole->prompt_tokens - 1);
  CHECK(whole->prompt.logprobs.size() == whole->prompt.tokens.size() * 3);

  std::string text;
  std::vector<uint32_t> tokens, prompt;
  const auto end = engine.try_stream(request, [&](const Event& e) {
    std::string record;
    for (std::size_t i = 0; i < e.tokens().size(); i++) {
      const auto of = e.logprobs_of(i);
      (e.is_prompt() ? prompt : tokens).push_back(e.tokens()[i]);
      CHECK(of.size() == (e.is_prompt() ? 3 : 4) && of[0].token == e.tokens()[i] && of[1].rank == 1 && of[0].logprob <= of[1].logprob);
      // Greedy, so the most probable one was taken.
      CHECK(e.is_prompt() || of[1].token == of[0].token);
      const auto alone = tokenizer->try_decode({of[0].token});
      CHECK(e.is_prompt() || (alone && *alone == e.text_of(i)));
      record += e.text_of(i);
    }
    CHECK(record == e.text());
    text += record;
  });
  CHECK(end && text == choice.text && tokens == choice.tokens && prompt == whole->prompt.tokens);
  CHECK(engine.try_generate(Request(request).logprobs(21)).error().status() == Status::invalid);
  const auto biased = engine.try_generate(
      Request::text("x").max_tokens(3).flags(YN_REQ_IGNORE_EOS).output(YN_OUT_TOKENS).extra_json(R"({"logit_bias": {"300": 100}})"));
  CHECK(biased && biased->choices[0].tokens == std::vector<uint32_t>(3, 300));
  const auto unknown = engine.try_generate(Request::text("x").extra_json(R"({"logit_biass": {}})"));
  CHECK(!unknown && std::string(unknown.error().what()).find("logit_bias") != std::string::npos);
}

static void chats_are_rendered(const std::string& model) {
  const Engine engine = open(json_of(model));
  const auto tokenizer = engine.try_tokenizer();
  CHECK(tokenizer);
  const std::string chat = R"({"messages": [{"role": "user", "content": "Tell me a story."}]})";
  const auto text = tokenizer->try_render_chat(chat);
  CHECK(text && text->find("Tell me a story.") != std::string::npos);
  const auto by_chat = engine.try_generate(Request::chat(chat).max_tokens(20).temperature(0));
  const auto by_text = engine.try_generate(Request::text(*text).max_tokens(20).temperature(0).flags(YN_REQ_NO_SPECIAL_TOKENS));
  CHECK(by_chat && by_text && by_chat->text() == by_text->text() && by_chat->prompt_tokens == by_text->prompt_tokens);
  const auto wrong = tokenizer->try_render_chat(R"({"messages": [{"role": "fox", "content": "x"}]})");
  CHECK(!wrong && std::string(wrong.error().what()).find("Unknown role: fox") != std::string::npos);
}

static void an_engine_tells_about_itself(const std::string& model) {
  const Engine engine = open(json_of(model, R"(, "served_model_name": "fox")"));
  CHECK(engine.try_generate(Request::text("x").max_tokens(3).flags(YN_REQ_IGNORE_EOS)));
  const auto info = engine.try_info();
  CHECK(info && info->front() == '{' && info->find("\"fox\"") != std::string::npos);
  const auto metrics = engine.try_metrics();
  CHECK(metrics && metrics->find("# TYPE") != std::string::npos && metrics->find("num_requests_running") != std::string::npos);
  const auto plan = yinian::try_plan_memory(json_of(model));
  CHECK(plan && plan->front() == '{' && plan->find("weights") != std::string::npos);
  CHECK(yinian::try_plan_memory(json_of("/no/such/model")).error().status() == Status::not_found);
  CHECK(yinian::status_name(Status::busy) == std::string_view("YN_E_BUSY"));
  CHECK(yinian::version() >> 16 == 1 && yinian::build_info().find("\"version\"") != std::string_view::npos);
}

static void draining_refuses_what_is_new() {
  const Engine engine = open(json_of("mock:words,delay_us=1000"));
  CHECK(engine.try_submit(endless("hello").max_tokens(50)));
  const auto soon = engine.try_drain(0);
  CHECK(soon && !*soon);
  const auto refused = engine.try_submit(endless("hello"));
  CHECK(!refused && refused.error().status() == Status::shutdown);
  const auto drained = engine.try_drain();
  CHECK(drained && *drained);
  CHECK(engine.try_stats()->finished == 1);
  const auto fd = engine.try_fd();
  CHECK(fd && ::close(*fd) == 0);
  engine.close();
  CHECK(engine.try_drain().error().status() == Status::bad_handle && !engine.try_info() && !engine.try_metrics() && !engine.try_fd());
}

static void loading_reports_progress() {
  const Engine engine = open(json_of("mock:words,load_ms=60", R"(, "async_load": true)"));
  CHECK(engine.try_stats()->state == YN_STATE_LOADING);
  const auto soon = engine.try_wait_ready(0);
  CHECK(soon && !*soon);
  uint32_t seen = 0, last = 0;
  const auto ready = engine.try_wait_ready([&](const Event& e) {
    CHECK(e.is_engine() && e.finish() == Finish::none && e.progress_permille() >= last);
    last = e.progress_permille();
    seen += e.state() == State::ready;
  });
  CHECK(ready && *ready && seen == 1 && last == 1000);
  CHECK(*engine.try_wait_ready(0));  // nothing is left to read
  const Engine broken = open(json_of("mock:words,load_ms=30,panic_load=1", R"(, "async_load": true, "log_level": "off")"));
  const auto failed = broken.try_wait_ready();
  CHECK(!failed && failed.error().unusable() && std::string(failed.error().what()).size() > 10);
  CHECK(!broken.try_wait_ready());
  const Engine gone = open(json_of("mock:words,load_ms=3000", R"(, "async_load": true)"));
  std::thread closer([&] { gone.close(); });
  const auto closed = gone.try_wait_ready();
  CHECK(!closed);
  closer.join();
}

// Lines of one level while an engine fails a step.
static void fail_a_step() {
  const Engine engine = open(json_of("mock:words,fail_step=3"));
  CHECK(engine.try_generate(endless("hello").max_tokens(10)));
}

static void log_lines_go_where_they_are_sent() {
  std::atomic<int> first{0}, second{0}, others{0};
  auto counter = [&](std::atomic<int>& n) {
    return [&](LogLevel level, std::string_view target, std::string_view message) {
      (level <= LogLevel::warn && target.substr(0, 6) == "yinian" && !message.empty() ? n : others)++;
#if defined(__cpp_exceptions)
      throw 1;
#endif
    };
  };
  auto sink = LogSink::try_open(LogLevel::warn, counter(first));
  CHECK(sink);
  fail_a_step();
  CHECK(first > 0 && others == 0);
  {
    const auto other = LogSink::try_open(LogLevel::warn, counter(second));
    CHECK(other);
    const int before = first;
    *sink = LogSink(*std::move(sink));  // neither starts nor stops anything
    fail_a_step();
    CHECK(second > 0 && first == before);
  }
  const int of_first = first, of_second = second;
  fail_a_step();
  CHECK(first == of_first && second == of_second);

  auto created = Queue::try_create();
  CHECK(created);
  Queue queue = *std::move(created);
  CHECK(yinian::try_log_to(queue, LogLevel::debug));
  fail_a_step();
  Events events;
  int warned = 0, lines = 0;
  while (*queue.try_poll(events, 0)) {
    for (const Event e : events) {
      CHECK(e.is_log() && !e.text().empty() && e.log_level() >= LogLevel::error && e.log_level() <= LogLevel::debug);
      lines++;
      warned += e.log_level() <= LogLevel::warn;
    }
  }
  CHECK(warned > 0 && lines > warned);
  CHECK(yinian::try_log_off());
  fail_a_step();
  CHECK(!*queue.try_poll(events, 0));
  queue.close();
  CHECK(yinian::try_log_to(queue, LogLevel::info).error().status() == Status::bad_handle);
}

void wide_tests() {
  const std::string model = env("YINIAN_TEST_MODEL");
  every_choice_has_its_own_output_and_end(model);
  logprobs_come_with_their_tokens(model);
  chats_are_rendered(model);
  an_engine_tells_about_itself(model);
  draining_refuses_what_is_new();
  loading_reports_progress();
  log_lines_go_where_they_are_sent();
}
